"""Folders of strangers: no code of theirs runs, nothing is fetched, no size that they claim is taken for granted."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import payloads
import pytest
from commands import Result, assert_refused
from foveated import make_foveated
from tiny_models import make_tokenizer
from transformers import AutoImageProcessor

from firebolt_vl.evaluate import tiny
from firebolt_vl.model import (
    CHAT_TEMPLATE,
    FireboltForConditionalGeneration,
    FireboltImageProcessor,
    FireboltModel,
    FireboltProcessor,
    FoveatedImageProcessor,
    FoveatedProcessor,
    FoveatedVLM,
)
from firebolt_vl.model.chat_template import ChatTemplateError
from firebolt_vl.model.checkpoint_files import CheckpointError
from firebolt_vl.model.loading import load_tokenizer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, links and devices are those of POSIX")
READ = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json")


@pytest.fixture
def folder(checkpoint, tmp_path):
    folder = tmp_path / "stranger"
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.fixture
def foveated(tmp_path):
    folder = tmp_path / "foveated"
    make_foveated().save_pretrained(folder)
    images = FoveatedImageProcessor(size={"height": 28, "width": 28})
    FoveatedProcessor(images, make_tokenizer(), CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection is a failure of the test, not only of the command."""
    asked = []

    def connect(self, address):
        asked.append(address)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: connect(None, host))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    yield
    assert asked == []


def commands(firebolt, folder, image) -> dict[str, Result]:
    """Every command that reads a folder, on this one."""
    rows = Path("rows.jsonl")
    rows.write_text(json.dumps({"image": str(image), "question": "what?"}) + "\n")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    Path("data.jsonl").write_text(json.dumps({"image": str(image), "conversations": turns}) + "\n")
    short = ("--max-new-tokens", 2)
    return {
        "ask": firebolt("ask", image, "what?", "--checkpoint", folder, *short),
        "batch": firebolt("ask", "--batch", rows, "--out", "out.jsonl", "--checkpoint", folder, *short),
        "watch": firebolt("watch", image, "what?", "--model", folder, *short),
        "convert": firebolt("convert", folder, "converted"),
        "data check": firebolt("data", "check", "data.jsonl", "--checkpoint", folder),
        "eval": firebolt("eval", "tiny", "--checkpoint", folder, "--json"),
    }


@pytest.fixture(autouse=True)
def short_exam(monkeypatch):
    """`eval tiny` with one scene of each layout."""
    whole = tiny.evaluate_tiny
    monkeypatch.setattr(tiny, "evaluate_tiny", lambda folder, **options: whole(folder, 4, **options))


# What each command reads of a folder. Every one of them is replaced by a pickle and named.
READ_BY = {
    "ask": (*READ, "generation_config.json", "chat_template.jinja"),
    "batch": (*READ, "generation_config.json", "chat_template.jinja"),
    "convert": READ,
    "data check": ("config.json", "tokenizer.json", "tokenizer_config.json"),
    "eval": (*READ, "generation_config.json", "chat_template.jinja"),
    "watch": (*READ, "generation_config.json", "chat_template.jinja"),
}


class TestCode:
    def test_none_of_it_runs(self, firebolt, folder, image, tmp_path):
        mark = tmp_path / "ran"
        payloads.plant_code(folder, mark)
        payloads.plant_pickles(folder, mark)
        found = commands(firebolt, folder, image)
        for name in ("ask", "batch", "eval"):
            assert found[name].code == 0, found[name].err
        FireboltImageProcessor.from_pretrained(folder)
        FireboltImageProcessor.from_pretrained(folder, trust_remote_code=True)
        load_tokenizer(folder)
        AutoImageProcessor.from_pretrained(folder)
        for door in (FireboltForConditionalGeneration, FireboltModel, FireboltProcessor):
            door.from_pretrained(folder)
            door.from_pretrained(folder, trust_remote_code=True)
        assert not mark.exists()

    def test_none_of_the_originals_runs(self, firebolt, original, image, tmp_path):
        mark = tmp_path / "ran"
        payloads.plant_code(original, mark)
        payloads.plant_pickles(original, mark)
        payloads.plant_code(original / "lm", mark)
        payloads.plant_code(original / "siglip", mark)
        (original / "processor_config.json").unlink()
        result = firebolt("convert", original, "converted", "--decoder", original / "lm")
        assert result.code == 0, result.err
        commands(firebolt, original, image)
        FireboltForConditionalGeneration.from_pretrained(original)
        assert not mark.exists()

    def test_none_of_a_foveated_models_runs(self, firebolt, foveated, image, tmp_path):
        mark = tmp_path / "ran"
        payloads.plant_code(foveated, mark)
        payloads.plant_pickles(foveated, mark)
        assert commands(firebolt, foveated, image)["watch"].code == 0
        FoveatedVLM.from_pretrained(foveated)
        FoveatedProcessor.from_pretrained(foveated)
        assert not mark.exists()

    @pytest.mark.parametrize("name", sorted(set().union(*READ_BY.values())))
    def test_a_pickle_in_the_place_of_a_file_that_is_read_is_named(self, firebolt, request, image, tmp_path, name):
        mark = tmp_path / "ran"
        for kind, read_by in (("folder", ("ask", "batch", "eval", "data check")), ("foveated", ("watch",))):
            place = request.getfixturevalue(kind)
            assert (place / name).is_file()
            payloads.plant_pickles(place, mark, [name])
            found = commands(firebolt, place, image)
            for command in read_by:
                if name in READ_BY[command]:
                    assert_refused(found[command], 1, name)
        assert not mark.exists()

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "best.pt", "consolidated.00.pth"])
    def test_weights_in_a_pickle_are_named(self, firebolt, folder, foveated, original, image, tmp_path, name):
        mark = tmp_path / "ran"
        for one, command in ((folder, "ask"), (foveated, "watch"), (original, "convert")):
            (one / "model.safetensors").unlink()
            payloads.plant_pickles(one, mark, [name])
            assert_refused(commands(firebolt, one, image)[command], 1, name, "can run code", "safetensors copy")
        for door in (FireboltForConditionalGeneration, FoveatedVLM):
            with pytest.raises(OSError, match=name):
                door.from_pretrained(folder)
        assert not mark.exists()

    @pytest.mark.parametrize("template", payloads.TEMPLATES)
    def test_a_template_that_looks_for_pythons_insides(self, firebolt, folder, image, tmp_path, template):
        mark = tmp_path / "ran"
        (folder / "chat_template.jinja").write_text(template.replace("MARK", str(mark)))
        assert_refused(commands(firebolt, folder, image)["ask"], 1, "chat_template")
        assert not mark.exists()

    def test_programs_from_the_hub_and_adapters_of_other_models(self, firebolt, folder, image):
        payloads.change_json(folder / "config.json", text_config__attn_implementation="someone/kernel")
        assert_refused(commands(firebolt, folder, image)["ask"], 1, "text_config.attn_implementation", "someone/kernel")
        payloads.change_json(folder / "config.json", text_config__attn_implementation="sdpa")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
        assert_refused(commands(firebolt, folder, image)["ask"], 1, "adapter_config.json", "merge_and_unload")

    def test_an_index_that_leaves_the_folder(self, firebolt, folder, image):
        (folder / "model.safetensors").unlink()
        for name in ("../../etc/passwd", "/etc/passwd", "sub/../../x.safetensors"):
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
            assert_refused(commands(firebolt, folder, image)["ask"], 1, name, "folder")


class TestFiles:
    @pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "dangling", "device", "huge", "deep"])
    @pytest.mark.parametrize("name", READ)
    def test_what_is_no_plain_file_is_not_opened(self, firebolt, folder, image, kind, name):
        payloads.make_special(folder / name, kind)
        result = firebolt("ask", image, "what?", "--checkpoint", folder, "--max-new-tokens", 2)
        assert_refused(result, 1, name)

    @pytest.mark.parametrize("name", ["vocab.txt", "merges.txt", "added_tokens.json", "chat_template.jinja", "x.model"])
    def test_files_that_a_library_may_open_too(self, firebolt, folder, image, name):
        payloads.make_special(folder / name, "fifo")
        result = firebolt("ask", image, "what?", "--checkpoint", folder, "--max-new-tokens", 2)
        assert_refused(result, 1, name, "pipe or device")

    @pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "dangling", "device", "huge", "deep"])
    @pytest.mark.parametrize("name", ["processor_config.json", "tokenizer_config.json"])
    def test_processors_alone_open_no_special_file(self, folder, foveated, name, kind):
        ours, foveateds = (FireboltProcessor, FireboltImageProcessor), (FoveatedProcessor, FoveatedImageProcessor)
        for place, doors in ((folder, ours), (foveated, foveateds)):
            payloads.make_special(place / name, kind)
            for door in doors:
                with pytest.raises(CheckpointError, match=name):
                    door.from_pretrained(place)

    @pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
    def test_an_image_processor_whose_file_is_missing_or_a_pickle_is_told(self, folder, tmp_path, name):
        (folder / "processor_config.json").rename(folder / name)
        assert FireboltImageProcessor.from_pretrained(folder).to_dict()
        payloads.plant_pickles(folder, tmp_path / "ran", [name])
        with pytest.raises(CheckpointError, match=name):
            FireboltImageProcessor.from_pretrained(folder)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match="has no processor"):
            FireboltImageProcessor.from_pretrained(folder)
        assert not (tmp_path / "ran").exists()

    def test_a_header_of_terabytes(self, firebolt, folder, image):
        weights = folder / "model.safetensors"
        huge = {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
        for write in (
            lambda: payloads.header_of(weights, huge),
            lambda: weights.write_bytes((10**15).to_bytes(8, "little") + b"{}"),
            lambda: payloads.header_of(weights, {"a": "x" * 20_000_000}),
        ):
            write()
            assert_refused(commands(firebolt, folder, image)["ask"], 1, "model.safetensors", "download it again")


# What a configuration may claim, and the file that it claims it in.
BOMBS = {
    "config.json": [
        {"text_config__num_hidden_layers": 10**8},
        {"vision_config__num_hidden_layers": 10**8},
        {"text_config__vocab_size": 10**9},
        {"text_config__hidden_size": 10**9},
        {"text_config__intermediate_size": 3 * 10**6},
        {"text_config__conv_L_cache": 10**9},
        {"text_config__num_attention_heads": 10**9},
        {"text_config__head_dim": 10**9},
        {"text_config__num_labels": 10**9},
        {"num_labels": 10**8},
        {"vision_config__image_size": 10**9},
        {"vision_config__image_size": 60_000, "vision_config__patch_size": 1},
        {"vision_config__patch_size": 0},
        {"vision_config__hidden_size": 65_000, "vision_config__intermediate_size": 65_000},
        {"cmm_config__state_size": 10**9},
        {"cmm_config__state_size": 60_000},
        {"cmm_config__heads": 10**9},
        {"cmm_config__kernel_taps": 10**9},
        {"cmm_config__head_dim": 60_000, "cmm_config__heads": 60_000},
        {"cmm_config__ffn_multiplier": 10**7},
        {"text_config__layer_types": ["conv"] * 300_000},
        {"text_config__layer_types": ["conv"] * 700_000},
        {"quantization_config": {"quant_method": "evil"}},
    ],
    "processor_config.json": [
        {"image_processor__size": {"height": 10**6, "width": 10**6}},
        {"image_processor__size": {"height": 4096, "width": 4096}},
        {"image_processor__tile_size": 10**6},
        {"image_processor__max_tiles": 10**9},
        {"image_processor__tiling": "compatible", "image_processor__tile_overlap": 15, "image_processor__size": 4096},
    ],
}
CASES = [(name, bomb) for name, bombs in BOMBS.items() for bomb in bombs]

MEASURE = """
import contextlib, io, json, resource, sys, time
from firebolt_vl import cli
image, good, *folders = sys.argv[1:]
def run(folder):
    said = io.StringIO()
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.run(["ask", image, "what?", "--checkpoint", folder, "--max-new-tokens", "2"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return code, time.monotonic() - start, (peak - before) * 1024, said.getvalue()
run(good)  # all that is imported
print(json.dumps([run(folder) for folder in folders]))
"""


def measured(image, good, folders) -> list[tuple[int, float, int, str]]:
    """(exit code, seconds, bytes of the peak beyond that of a good checkpoint before, what was said) of each folder."""
    arguments = [sys.executable, "-c", MEASURE, *map(str, (image, good, *folders))]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


class TestBombs:
    def test_sizes_are_refused_at_once(self, checkpoint, image, tmp_path):
        """In one process, after a checkpoint that is good: what is measured is without imports."""
        folders = []
        for number, (name, bomb) in enumerate(CASES):
            folders.append(tmp_path / f"{number}")
            shutil.copytree(checkpoint, folders[-1])
            payloads.change_json(folders[-1] / name, **bomb)
        for template in payloads.LOOPING_TEMPLATES:
            folders.append(tmp_path / f"{len(folders)}")
            shutil.copytree(checkpoint, folders[-1])
            (folders[-1] / "chat_template.jinja").write_text(template)
        for (code, _, grown, said), case in zip(
            measured(image, checkpoint, folders), CASES + list(payloads.LOOPING_TEMPLATES), strict=True
        ):
            assert code == 1, (case, said)
            assert said.startswith("firebolt: ")
            assert said.count("\n") == 1
            assert "unexpected" not in said
            assert "Traceback" not in said
            assert grown < 300e6, (case, grown)
            if isinstance(case, tuple):
                words = [key.rpartition("__")[2] for key in case[1]]
                words += ["config.json makes it", "grid_width", "bytes large"]
                assert any(word in said for word in words), (case, said)
            else:
                assert "chat_template" in said

    def test_an_image_processor_alone_refuses_its_sizes(self, folder):
        described = (folder / "processor_config.json").read_text()
        for key, value in (("size", {"height": 10**6, "width": 10**6}), ("tile_size", 10**6), ("max_tiles", 10**9)):
            (folder / "processor_config.json").write_text(described)
            payloads.change_json(folder / "processor_config.json", **{f"image_processor__{key}": value})
            with pytest.raises(ValueError, match=key):
                FireboltImageProcessor.from_pretrained(folder)

    @pytest.mark.parametrize("template", payloads.LOOPING_TEMPLATES)
    def test_a_template_without_end_is_stopped_where_a_processor_renders_it(self, folder, foveated, template):
        for place, kind in ((folder, FireboltProcessor), (foveated, FoveatedProcessor)):
            (place / "chat_template.jinja").write_text(template)
            with pytest.raises((ChatTemplateError, CheckpointError), match="chat_template"):  # or too long to be read
                kind.from_pretrained(place).apply_chat_template([{"role": "user", "content": "what?"}])

    def test_what_bounds_nothing_by_itself_is_harmless(self, firebolt, folder, image):
        payloads.change_json(folder / "config.json", cmm_config__top_k=10**9)
        payloads.change_json(folder / "config.json", text_config__max_position_embeddings=10**15)
        result = firebolt("ask", image, "what?", "--checkpoint", folder, "--max-new-tokens", 2)
        assert (result.code, result.err) == (0, "")

    def test_a_foveated_model_too(self, firebolt, foveated, image):
        described = (foveated / "config.json").read_text()
        for changes in (
            {"text_config__num_hidden_layers": 10**8},
            {"vision_config__num_hidden_layers": 10**8},
            {"vision_config__image_size": 60_000, "vision_config__patch_size": 1},
            {"vision_config__mlp_ratio": 10**7},
            {"query_dim": 10**9},
            {"text_config__vocab_size": 10**9},
        ):
            (foveated / "config.json").write_text(described)
            payloads.change_json(foveated / "config.json", **changes)
            words = [key.rpartition("__")[2] for key in changes]
            result = firebolt("watch", image, "what?", "--model", foveated)
            assert_refused(result, 1)
            assert any(word in result.err for word in (*words, "embeddings")), result.err
        (foveated / "config.json").write_text(described)
        payloads.change_json(foveated / "processor_config.json", image_processor__image_frames=10**9)
        assert_refused(firebolt("watch", image, "what?", "--model", foveated), 1, "image_frames")

    def test_the_originals_backbones_too(self, firebolt, original):
        for changes, file in (
            ({"num_hidden_layers": 10**8}, original / "lm" / "config.json"),
            ({"vision_config__num_hidden_layers": 10**8}, original / "siglip" / "config.json"),
            ({"vision_config__image_size": 10**9}, original / "siglip" / "config.json"),
        ):
            before = file.read_text()
            payloads.change_json(file, **changes)
            [key] = changes
            assert_refused(firebolt("convert", original, "ours"), 1, key.rpartition("__")[2])
            file.write_text(before)

    def test_pictures_without_end(self, firebolt, folder, tmp_path):
        from PIL import Image

        bomb = tmp_path / "bomb.png"
        Image.new("1", (20_000, 10_000)).save(bomb)
        assert_refused(firebolt("ask", bomb, "what?", "--checkpoint", folder), 1, "bomb.png", "decompression bombs")


class TestPlaces:
    @pytest.mark.parametrize("name", ["nothing", "./a/b", "../a/b", "~/a/b", "/a/b", "stranger/b", "a/b/c", "a/b.json"])
    def test_a_mistyped_path_is_not_asked_of_the_hub(self, firebolt, folder, image, name):
        assert_refused(firebolt("ask", image, "what?", "--checkpoint", name), 1, name, "check the path")

    def test_what_was_meant_is_named(self, firebolt, folder, image):
        result = firebolt("ask", image, "what?", "--checkpoint", "strangre")
        assert_refused(result, 1, "did you mean stranger?")
        assert_refused(firebolt("ask", image, "what?", "--checkpoint", "tiyn"), 1, "did you mean tiny?")

    def test_the_embedded_model_has_a_name(self, firebolt, image):
        reply = json.loads(firebolt("ask", image, "what?", "--checkpoint", "tiny", "--json").out)
        assert Path(reply["checkpoint"]).name == "tiny"
        assert FireboltForConditionalGeneration.from_pretrained("tiny").config.text_config.vocab_size == 446

    def test_a_folder_of_that_name_comes_first(self, firebolt, folder, image):
        folder.rename("tiny")
        reply = json.loads(firebolt("ask", image, "what?", "--checkpoint", "tiny", "--json", "--max-new-tokens", 2).out)
        assert reply["checkpoint"] == "tiny"

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
    def test_the_file_that_is_missing_is_named(self, firebolt, folder, image, name):
        (folder / name).unlink()
        assert_refused(firebolt("ask", image, "what?", "--checkpoint", folder), 1, "stranger", name)
        assert_refused(firebolt("eval", "tiny", "--checkpoint", folder), 1, "stranger", name)
