"""Text files say their encoding by a mark, and fail in plain words."""

import codecs

import pytest

from firebolt_vl.files.reading import lines_of, parse_json, read_text

MARKED = {
    "plain": ("utf-8", b""),
    "utf-8": ("utf-8", codecs.BOM_UTF8),
    "utf-16 little": ("utf-16-le", codecs.BOM_UTF16_LE),
    "utf-16 big": ("utf-16-be", codecs.BOM_UTF16_BE),
    "utf-32 little": ("utf-32-le", codecs.BOM_UTF32_LE),
    "utf-32 big": ("utf-32-be", codecs.BOM_UTF32_BE),
}
TEXT = '{"a": "é 数 🙂"}\n\n{"b": "\u2028"}\r\n'


@pytest.mark.parametrize("name", MARKED)
def test_a_mark_tells_the_encoding_and_is_no_text(tmp_path, name):
    encoding, mark = MARKED[name]
    file = tmp_path / "a"
    file.write_bytes(mark + TEXT.encode(encoding))
    assert read_text(file) == TEXT
    assert b"".join(lines_of(file)) == TEXT.encode()
    assert len(list(lines_of(file))) == 3


def test_marks_within_files_that_were_put_together_are_left_out(tmp_path):
    (tmp_path / "a").write_bytes(2 * (codecs.BOM_UTF8 + b"{}\n"))
    assert list(lines_of(tmp_path / "a")) == [b"{}\n", b"{}\n"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "a").touch()
    assert list(lines_of(tmp_path / "a")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff{}", "byte 1 is 0xff, which is not UTF-8"),
        (b"\xff\xfe{", "which is not UTF-16"),
        (b"{", "column 2"),
        (b"1" * 5000, "4300 digits"),
    ],
)
def test_what_is_no_json_is_a_value_error_in_a_line(text, words):
    with pytest.raises(ValueError, match=words) as raised:
        parse_json(text)
    assert "\n" not in str(raised.value)
