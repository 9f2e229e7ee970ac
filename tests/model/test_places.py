"""Names of models: what is on this machine comes first, and the hub only where nothing else can be meant."""

from pathlib import Path

import huggingface_hub
import pytest

from firebolt_vl.model.places import PlaceError, could_be_hub_id, find


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The names that the hub is asked for; it gives an empty folder."""
    names = []

    def snapshot_download(name, **how):
        names.append((name, how))
        return str(tmp_path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return names


@pytest.mark.parametrize(
    "name",
    [
        *("nothing", "./a/b", "../a/b", "/a/b", "~/a/b", "a/b/c", "a//b", "a/b/", "here/b", "a/b.json"),
        *("a/b.SAFETENSORS", "a/b.pt", "a b/c", "a\\b/c", "a/.b", "-a/b", "hf:", "hf:a/b/c", "hf:../a"),
        *("http://a/b", "x" * 300),
    ],
)
def test_what_may_be_a_path_is_not_asked_of_the_hub(asked, name):
    Path("here").mkdir()
    with pytest.raises(PlaceError):
        find(name)
    assert asked == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("org/name", "org/name"), ("hf:org/name", "org/name"), ("hf:gpt2", "gpt2"), ("o.r-g/n_a.3", "o.r-g/n_a.3")],
)
def test_what_can_only_be_an_id_is(asked, name, wanted):
    find(name, revision="main", token=None)
    [(found, how)] = asked
    assert found == wanted
    assert how["revision"] == "main"
    assert "token" not in how
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in how["allow_patterns"])


def test_a_folder_comes_first(asked):
    for name in ("org/name", "tiny", "hf:org"):
        Path(name).mkdir(parents=True)
        assert find(name) == Path(name)
    assert asked == []
    assert find("hf:org/name") is not None
    assert [name for name, _ in asked] == ["org/name"]


def test_what_was_meant_is_said(asked):
    Path("models/checkpoint").mkdir(parents=True)
    with pytest.raises(PlaceError, match=r"^models/chekpoint does not exist; did you mean models/checkpoint\?$"):
        find("models/chekpoint")
    Path("models/file").write_text("")
    with pytest.raises(PlaceError, match="is a file; name the folder"):
        find("models/file")
    assert not could_be_hub_id("models/other")
