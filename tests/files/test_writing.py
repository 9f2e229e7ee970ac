"""Results replace what is theirs alone: never an input, by whatever name, nor a file of somebody else's."""

import errno
import os
import stat

import pytest

from firebolt_vl.files.writing import OutputError, check_output, lock, write_text, write_whole


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("a line\n")
    return file


def names_of(source) -> dict:
    """Ways to say the name of a file: (argument, how it comes to lead there)."""
    folder = source.parent
    (folder / "sub").mkdir()
    (folder / "link.jsonl").symlink_to(source)
    (folder / "twice.jsonl").symlink_to(folder / "link.jsonl")
    (folder / "elsewhere").symlink_to(folder, target_is_directory=True)
    os.link(source, folder / "hard.jsonl")
    return {
        "its own name": source,
        "a relative path": os.path.relpath(source),
        "over another folder": folder / "sub" / ".." / "in.jsonl",
        "a link": folder / "link.jsonl",
        "a link to a link": folder / "twice.jsonl",
        "a linked folder": folder / "elsewhere" / "in.jsonl",
        "a hard link": folder / "hard.jsonl",
    }


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_refused_by_whatever_name(source, overwrite):
    for how, name in names_of(source).items():
        with pytest.raises(OutputError, match=", the source itself; name another file"):
            check_output("OUT", name, [("the source", source)], overwrite=overwrite, ours=lambda file: True)
        assert source.read_text() == "a line\n", how


def test_an_input_that_is_not_there_yet_is_refused_too(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "later")
    with pytest.raises(OutputError, match=", the list itself"):
        check_output("OUT", tmp_path / "out", [("the list", tmp_path / "later")])


def test_what_is_there_is_kept_unless_it_is_ours_or_empty_or_asked_for(tmp_path):
    out = tmp_path / "out"
    check_output("OUT", out)
    out.touch()
    check_output("OUT", out)
    out.write_text("notes")
    with pytest.raises(
        OutputError, match=r"OUT is .*out, which exists already and was not written by this command; move it"
    ):
        check_output("OUT", out, hint="move it")
    check_output("OUT", out, overwrite=True)
    check_output("OUT", out, ours=lambda file: file.read_text() == "notes")
    for name in ("folder", "pipe", "circle"):
        path = tmp_path / name
        {
            "folder": path.mkdir,
            "pipe": lambda path=path: os.mkfifo(path),
            "circle": lambda path=path: path.symlink_to(path),
        }[name]()
        with pytest.raises(OutputError, match=r"a folder or a device; expected a file|leads in a circle"):
            check_output("OUT", path, overwrite=True)


def test_a_link_stays_one_and_the_file_behind_it_keeps_its_mode(tmp_path):
    real, link = tmp_path / "real" / "a.png", tmp_path / "a.png"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    os.link(real, tmp_path / "hard")
    write_text(link, "new")
    assert link.is_symlink()
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == ("new", 0o640)
    assert (tmp_path / "hard").read_text() == "old"
    (tmp_path / "later").symlink_to(tmp_path / "real" / "b")
    write_text(tmp_path / "later", "b")
    assert (tmp_path / "real" / "b").read_text() == "b"
    assert sorted(path.name for path in real.parent.iterdir()) == ["a.png", "b"]


def test_a_new_file_has_the_mode_that_new_files_get(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("x")])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(source, error):
    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)) as raised:
        write_whole(source, write)
    assert source.read_text() == "a line\n"
    assert os.listdir(source.parent) == ["in.jsonl"]
    if isinstance(error, OSError):
        assert raised.value.filename == str(source)


def test_a_lock_is_one_processes_and_no_lock_is_not_another_run(source, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    with source.open("rb") as one, source.open("rb") as other:
        assert lock(one)
        with pytest.raises(BlockingIOError):
            lock(other)
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):

        def refuse(*_, number=number):
            raise OSError(number, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with source.open("rb") as file:
            assert not lock(file)
