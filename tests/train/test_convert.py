"""Converters, on small samples of the formats that the data sets are released in."""

import codecs
import json

import pytest
from conversations import encoded, picture, write_shard

from firebolt_vl.files.writing import OutputError
from firebolt_vl.train.data import Conversations
from firebolt_vl.train.data.convert import CAPTION_QUESTION, convert


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def said(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "assistant", "value": answer}]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (0, 2):
        picture(number).save(folder / f"GCC_train_{number:09d}.jpg")
    return folder


@pytest.mark.parametrize("header", ["", "caption\turl\n"])
def test_cc3m_from_its_table(tmp_path, images, header):
    table = tmp_path / "Train_GCC-training.tsv"
    table.write_text(
        header + "a very typical bus station\thttp://lh6.example.com/a.jpg\n"
        "sierra looked stunning\thttp://example.com/b.jpg\n"
        "young confused girl\thttp://example.com/c.jpg\n"
        "a line without an address\n"
    )
    out = tmp_path / "out" / "cc3m.jsonl"
    problems = convert("cc3m", table, out, images)
    assert lines(out) == [
        {"image": f"../images/GCC_train_{number:09d}.jpg", "conversations": said(CAPTION_QUESTION, caption)}
        for number, caption in ((0, "a very typical bus station"), (2, "young confused girl"))
    ]
    assert problems.by_kind == {"missing image": 1, "not caption and address": 1}
    assert len(Conversations([out], None, check_images=True)) == 2


def test_cc3m_from_shards_of_img2dataset(tmp_path):
    described = {"caption": "a bus", "url": "http://example.com/a.jpg", "key": "000000000", "status": "success"}
    shard = write_shard(
        tmp_path / "cc3m-train-0000.tar",
        {
            "000000000.jpg": encoded(picture(0), "jpeg"),
            "000000000.json": json.dumps(described).encode(),
            "000000000.txt": b"a bus",
            "000000001.jpg": encoded(picture(1), "jpeg"),
            "000000001.json": json.dumps({**described, "caption": "two buses"}).encode(),
            "000000002.json": json.dumps(described).encode(),
            "000000003.jpg": encoded(picture(3), "jpeg"),
            "000000003.txt": b" ",
        },
    )
    out = tmp_path / "cc3m.jsonl"
    problems = convert("cc3m", shard, out, tmp_path)
    assert lines(out) == [
        {"image": f"cc3m-train-0000.tar/{key}.jpg", "conversations": said(CAPTION_QUESTION, caption)}
        for key, caption in (("000000000", "a bus"), ("000000001", "two buses"))
    ]
    assert [(problem.place, problem.kind) for problem in problems] == [
        ("000000002", "missing in shard"),
        ("000000003", "empty answer"),
    ]
    assert len(Conversations([out], None, check_images=True)) == 2


REASONED = (
    "<SUMMARY> I will count. </SUMMARY>\n\n<CAPTION> Two cats. </CAPTION>\n\n"
    "<REASONING> One and one. </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)


def test_llava_cot(tmp_path, images):
    rows = [
        {
            "id": "sqa/train/20839/image.png",
            "image": "GCC_train_000000000.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nHow many cats?"},
                {"from": "gpt", "value": REASONED},
                {"from": "human", "value": "And dogs?"},
                {"from": "gpt", "value": REASONED},
            ],
        },
        {"id": "b", "image": "GCC_train_000000002.jpg", "conversations": [{"from": "tool", "value": "x"}]},
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n{\n")
    out = tmp_path / "cot.jsonl"
    problems = convert("llava-cot", file, out, images)
    [kept] = lines(out)
    assert kept["image"] == "images/GCC_train_000000000.jpg"
    assert kept["conversations"] == said("How many cats?", REASONED) + said("And dogs?", REASONED)
    assert [(problem.place, problem.kind) for problem in problems] == [("2", "unknown role"), ("3", "broken JSON")]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(rows))
    convert("llava-cot", listed, out, images)
    assert lines(out) == [kept]


PAIR = {
    "image": "GCC_train_000000000.jpg",
    "question": "<image>\nHow many?",
    "chosen": "First, I count.\n\nFinal answer: 2",
    "rejected": "Final answer: 3",
}


def test_mmpr_from_its_meta_file(tmp_path, images):
    release = tmp_path / "MMPR-v1.2"
    (release / "annotations").mkdir(parents=True)
    images.rename(release / "images")
    several = {**PAIR, "image": ["GCC_train_000000000.jpg", "GCC_train_000000002.jpg"]}
    text = {key: PAIR[key] for key in ("question", "chosen", "rejected")}
    rows = [PAIR, several, text, {**PAIR, "chosen": None}]
    (release / "annotations" / "count.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = {"root": "MMPR-v1.2/images", "annotation": "MMPR-v1.2/annotations/count.jsonl", "data_augment": False}
    meta = {"count": {**part, "repeat_time": 1, "length": 4}, "gone": {**part, "annotation": "gone.jsonl"}}
    (release / "meta.json").write_text(json.dumps(meta))
    out = tmp_path / "mmpr.jsonl"
    problems = convert("mmpr", release / "meta.json", out, release / "images")
    first, second = (f"MMPR-v1.2/images/GCC_train_{number:09d}.jpg" for number in (0, 2))
    talk = {"conversations": said("How many?", PAIR["chosen"]), "rejected": PAIR["rejected"]}
    assert lines(out) == [{"image": first, **talk}, {"image": [first, second], **talk}, talk]
    assert [problem.kind for problem in problems] == ["value is no text", "missing annotation"]
    assert len(Conversations([out], None, check_images=True)) == 3
    convert("mmpr", release / "annotations" / "count.jsonl", out, release / "images")
    assert len(lines(out)) == 3


def test_an_unknown_format_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="format is 'coco'; expected one of cc3m, llava-cot, mmpr"):
        convert("coco", tmp_path / "a", tmp_path / "b", tmp_path)
    with pytest.raises(OSError, match="none"):
        convert("mmpr", tmp_path / "none.jsonl", tmp_path / "b", tmp_path)
    assert not list(tmp_path.iterdir())


MARKS = {"UTF-8": ("utf-8", codecs.BOM_UTF8), "UTF-16": ("utf-16-le", codecs.BOM_UTF16_LE)}


@pytest.mark.parametrize("mark", MARKS)
def test_a_byte_order_mark_changes_no_row(tmp_path, images, mark):
    encoding, begin = MARKS[mark]
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "é"}]
    conversation = json.dumps({"image": "GCC_train_000000000.jpg", "conversations": turns})
    contents = {
        "table.tsv": ("cc3m", "caption\turl\nfirst\thttp://x/0\nsecond\thttp://x/1\nthird\thttp://x/2\n"),
        "bare.tsv": ("cc3m", "first\thttp://x/0\n"),
        "pairs.jsonl": ("mmpr", json.dumps(PAIR) + "\n"),
        "list.json": ("llava-cot", f"[{conversation}]"),
        "indented.json": ("llava-cot", f"\n [{conversation}]\n"),
        "lines.jsonl": ("llava-cot", conversation + "\n" + conversation),
        "meta.json": ("mmpr", json.dumps({"s": {"root": "images", "annotation": "plain.jsonl"}})),
    }
    (tmp_path / "plain.jsonl").write_text(json.dumps(PAIR))
    for name, (kind, text) in contents.items():
        found = []
        for data in (text.encode(), begin + text.encode(encoding)):
            (tmp_path / name).write_bytes(data)
            problems = convert(kind, tmp_path / name, tmp_path / "out.jsonl", images)
            found.append((lines(tmp_path / "out.jsonl"), problems.rows, problems.by_kind))
        assert found[0] == found[1], name
        assert found[0][0], name


def test_a_conversion_without_a_good_row_leaves_what_is_there(tmp_path, images):
    out = tmp_path / "out.jsonl"
    for content in ("", "{}\n", "[]", '{"image": "a.png"}\n' + "[" * 5000 + "\n"):
        (tmp_path / "in.jsonl").write_text(content)
        for before in (None, "what was there\n"):
            out.unlink(missing_ok=True)
            if before is not None:
                out.write_text(before)
            problems = convert("llava-cot", tmp_path / "in.jsonl", out, images)
            assert problems.rows == len(problems)
            assert (out.read_text() if out.exists() else None) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "in.jsonl", "out.jsonl"]


def test_no_input_is_written_over(tmp_path, images):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(PAIR) + "\n")
    (tmp_path / "link.jsonl").symlink_to(pairs)
    (tmp_path / "meta.json").write_text(json.dumps({"s": {"root": "images", "annotation": "pairs.jsonl"}}))
    before = pairs.read_bytes()
    for file, out in (("pairs.jsonl", "pairs.jsonl"), ("pairs.jsonl", "link.jsonl"), ("link.jsonl", "pairs.jsonl")):
        with pytest.raises(OutputError, match=", the file that is converted itself"):
            convert("mmpr", tmp_path / file, tmp_path / out, images)
    with pytest.raises(OutputError, match="one of the annotations"):
        convert("mmpr", tmp_path / "meta.json", tmp_path / "link.jsonl", images)
    assert pairs.read_bytes() == before


def test_paths_of_images_lead_there_through_links(tmp_path, images):
    """The folder of OUT, that of the images, and OUT itself may be links; the rows have to find their images."""
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    deep = tmp_path / "disk" / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "out").symlink_to(deep, target_is_directory=True)
    (tmp_path / "photos").symlink_to(images, target_is_directory=True)
    (tmp_path / "elsewhere.jsonl").symlink_to(deep / "real.jsonl")
    for out in (tmp_path / "out" / "mmpr.jsonl", deep / "mmpr.jsonl", tmp_path / "elsewhere.jsonl"):
        for folder in (images, tmp_path / "photos"):
            assert not len(convert("mmpr", tmp_path / "pairs.jsonl", out, folder))
            for name in {out, out.resolve()}:
                assert len(Conversations([name], None, check_images=True)) == 1
    convert("mmpr", tmp_path / "pairs.jsonl", tmp_path / "plain.jsonl", tmp_path / "photos")
    assert lines(tmp_path / "plain.jsonl")[0]["image"].startswith("photos/")  # a link that leads there is kept
