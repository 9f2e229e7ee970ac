"""The `firebolt` command: what it answers, and what it says where it cannot."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Result, assert_refused
from originals import letter_tokenizer, write_original
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import make_processor, write_checkpoint

from firebolt_vl import ask as asking
from firebolt_vl import checkpoint as loading
from firebolt_vl.evidence import word_spans

QUESTION = "what digit is at the top left?"


@pytest.fixture
def ask(firebolt, checkpoint, image):
    def run(*arguments, image=image, question=QUESTION, checkpoint=checkpoint) -> Result:
        return firebolt("ask", image, question, "--checkpoint", checkpoint, "--max-new-tokens", 6, *arguments)

    return run


class TestAnswers:
    def test_question_answer_and_timing_are_printed(self, ask):
        result = ask()
        assert result.code == 0
        assert result.err == ""
        lines = result.out.splitlines()
        assert lines[0] == QUESTION
        assert "loaded in" in lines[-1]
        assert "first token after" in lines[-1]
        assert "6 tokens in" in lines[-1]
        assert "tokens/s" in lines[-1]

    def test_json_is_one_object(self, ask, image, checkpoint):
        result = ask("--json")
        assert result.err == ""
        reply = json.loads(result.out)
        assert reply["question"] == QUESTION
        assert reply["checkpoint"] == str(checkpoint)
        assert reply["image"] == {"path": str(image), "width": 64, "height": 48}
        assert (reply["device"], reply["dtype"], reply["seed"], reply["grounding"]) == ("cpu", "float32", None, None)
        assert reply["answer_tokens"] == 6
        assert reply["complete"] is False
        timing = reply["timing"]
        assert 0 < timing["first_token_s"] < timing["total_s"]
        assert timing["tokens_per_s"] == pytest.approx(5 / (timing["total_s"] - timing["first_token_s"]))

    def test_the_answer_is_the_models_greedy_one(self, ask, checkpoint, image):
        from firebolt_vl.model import FireboltForConditionalGeneration

        processor = make_processor()
        messages = [
            {"role": "user", "content": [{"type": "image", "path": str(image)}, {"type": "text", "text": QUESTION}]}
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        model = FireboltForConditionalGeneration.from_pretrained(checkpoint).eval()
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        reply = json.loads(ask("--json").out)
        assert reply["answer"] == processor.decode(tokens, skip_special_tokens=True).strip()
        assert reply["prompt_tokens"] == inputs["input_ids"].shape[1]

    def test_the_embedded_checkpoint_is_the_default(self, firebolt, checkpoint, image, monkeypatch):
        monkeypatch.setattr(loading, "embedded_checkpoint", lambda: checkpoint)
        reply = json.loads(firebolt("ask", image, QUESTION, "--json", "--max-new-tokens", 1).out)
        assert reply["checkpoint"] == str(checkpoint)

    def test_the_embedded_model_says_what_it_knows_and_where_it_guesses(self, firebolt, image):
        result = firebolt("ask", image, "is there a dog?")
        assert (result.code, result.err) == (0, "")
        assert 'a guess: the question has words that this model was not trained on ("dog")' in result.out
        assert "a guess: the image is unlike those that this model was trained on" in result.out
        assert "the small model tiny: it knows coloured handwritten digits" in result.out
        assert "probability" in result.out

    def test_probability_is_the_geometric_mean_over_the_answers_tokens(self, ask, checkpoint, image):
        from firebolt_vl.model import FireboltForConditionalGeneration

        reply = json.loads(ask("--json").out)
        assert (reply["knows"], reply["doubts"]) == (None, [])
        processor = make_processor()
        text = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
        inputs = processor(images=str(image), text=text, return_tensors="pt", add_special_tokens=False)
        model = FireboltForConditionalGeneration.from_pretrained(checkpoint).eval()
        made = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = made.sequences[0, -6:]
        chosen = torch.stack([logits[0].log_softmax(-1)[token] for logits, token in zip(made.logits, tokens)])
        assert reply["probability"] == pytest.approx(chosen.mean().exp().item(), rel=1e-4)

    def test_a_seed_samples_and_repeats(self, ask):
        answers = [json.loads(ask("--json", *seed).out)["answer"] for seed in (["--seed", 1], ["--seed", 1], [], [])]
        assert answers[0] == answers[1]
        assert answers[2] == answers[3]
        assert answers[0] != answers[2]

    def test_a_checkpoint_without_a_chat_template_gets_the_question_as_it_stands(self, ask, tmp_path):
        write_checkpoint(tmp_path / "plain", chat_template=None)
        reply = json.loads(ask("--json", checkpoint=tmp_path / "plain").out)
        assert reply["prompt_tokens"] == len(QUESTION)

    @pytest.mark.parametrize(
        "question",
        [
            "où est le 7 ?",
            "数字はどこですか",
            "أين الرقم؟",
            "🙂👩‍👩‍👧‍👦?",
            "a\nb\tc",
            "[bold]x[/] \x1b[31m",
            "\udcff?",
        ],
    )
    def test_any_script_is_answered(self, ask, question, tmp_path):
        result = ask("--grounding", tmp_path / "out.png", "--json", question=question)
        assert (result.code, result.err) == (0, "")
        assert (tmp_path / "out.png").is_file()
        assert ask(question=question).code == 0

    def test_a_long_question_is_answered_where_the_positions_allow_it(self, ask, tmp_path):
        write_checkpoint(tmp_path / "long", text={"max_position_embeddings": 110_000})
        reply = json.loads(
            ask("--json", "--max-new-tokens", 2, question="why? " * 4000, checkpoint=tmp_path / "long").out
        )
        assert reply["prompt_tokens"] > 20_000
        result = ask(question="x" * 100_000)
        assert_refused(result, 1, "the question is ", " tokens long; expected fewer than 2,048", "shorten it")

    def test_an_answer_stops_where_the_positions_end(self, ask):
        reply = json.loads(ask("--json", "--max-new-tokens", 500, question="x" * 2000).out)
        assert reply["prompt_tokens"] + reply["answer_tokens"] == 2048

    @pytest.mark.parametrize("kind", ["1x1", "20000x10", "animated", "cmyk", "palette", "16-bit", "rotated"])
    def test_odd_images_are_answered(self, ask, tmp_path, kind):
        path = tmp_path / "odd"
        noise = Image.effect_noise((40, 30), 60)
        if kind == "1x1":
            noise.resize((1, 1)).save(path, "PNG")
        elif kind == "20000x10":
            noise.resize((20000, 10)).save(path, "PNG")
        elif kind == "animated":
            noise.save(path, "GIF", save_all=True, append_images=[noise.rotate(90)])
        elif kind == "cmyk":
            noise.convert("CMYK").save(path, "JPEG")
        elif kind == "palette":
            noise.convert("RGB").quantize(8).save(path, "PNG", transparency=1)
        elif kind == "16-bit":
            Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(path, "PNG")
        else:
            exif = Image.Exif()
            exif[0x0112] = 6
            noise.save(path, "JPEG", exif=exif)
        result = ask("--json", "--grounding", tmp_path / "out.png", image=path)
        assert (result.code, result.err) == (0, "")
        reply = json.loads(result.out)
        if kind == "rotated":
            assert (reply["image"]["width"], reply["image"]["height"]) == (30, 40)
        assert Image.open(tmp_path / "out.png").size[0] > 1000


def test_a_checkpoint_of_the_original_answers_in_its_own_way(ask, tmp_path):
    """`<image>` and a new line before the question, as ordinary text, and 256 pixels in 2 x 2 tiles that overlap."""
    folder = tmp_path / "original"
    write_original(folder)
    letter_tokenizer().save_pretrained(folder)
    result = ask("--json", "--grounding", tmp_path / "out.png", checkpoint=folder)
    assert (result.code, result.err) == (0, "")
    reply = json.loads(result.out)
    assert reply["prompt_tokens"] == len("<image>\n") + len(QUESTION)
    assert reply["grounding"]["views"][4]["box"] == [48 * 126 / 256, 64 * 126 / 256, 48 * 254 / 256, 64 * 254 / 256]


class TestGrounding:
    def test_the_picture_is_written_and_the_numbers_are_told(self, ask, tmp_path):
        out = tmp_path / "out.png"
        result = ask("--grounding", out, "--json")
        assert (result.code, result.err) == (0, "")
        with Image.open(out) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 800
        found = json.loads(result.out)["grounding"]
        assert found["picture"] == str(out)
        assert [view["view"] for view in found["views"]] == ["global", "tile", "tile", "tile", "tile"]
        assert found["views"][0]["box"] == [0, 0, 48, 64]
        assert found["views"][4]["box"] == [24, 32, 48, 64]
        assert [word["word"] for word in found["words"]] == ["what", "digit", "is", "at", "the", "top", "left"]
        for word in found["words"]:
            assert sum(word["weights"]) == pytest.approx(1, abs=1e-5)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "out.png"]

    def test_a_words_weights_are_the_mean_over_its_own_tokens(self, ask, checkpoint, image, tmp_path):
        from firebolt_vl.model import FireboltForConditionalGeneration

        reply = json.loads(ask("--grounding", tmp_path / "out.png", "--json").out)
        processor = make_processor()
        text = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
        inputs = processor(images=str(image), text=text, return_tensors="pt", add_special_tokens=False)
        model = FireboltForConditionalGeneration.from_pretrained(checkpoint).eval()
        weighed = model.ground(**inputs, method="weights")
        # One token a byte, and one for each of the two special tokens in front of "user\n".
        start = 2 + len("user\n") + QUESTION.index("top")
        wanted = weighed.phrase(0, start, start + 3)
        assert torch.allclose(torch.tensor(reply["grounding"]["words"][5]["weights"]), wanted, atol=1e-6)

    def test_a_connector_without_weights_shows_occlusion_alone(self, ask, tmp_path):
        write_checkpoint(tmp_path / "prepend", connector="prepend")
        result = ask("--grounding", tmp_path / "out.png", "--json", checkpoint=tmp_path / "prepend")
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["grounding"]["words"] is None

    def test_a_picture_of_ours_is_replaced_and_another_file_only_where_that_is_asked_for(self, ask, tmp_path):
        out = tmp_path / "out.png"
        Image.new("RGB", (8, 8)).save(out)
        before = out.read_bytes()
        assert_refused(ask("--grounding", out), 2, "which exists already", "--overwrite")
        assert out.read_bytes() == before
        assert ask("--grounding", out, "--overwrite").code == 0
        ours = out.read_bytes()
        assert ours != before
        assert ask("--grounding", out, question="is there another?").code == 0
        assert out.read_bytes() != ours

    def test_a_picture_that_fails_leaves_the_old_file_and_nothing_else(self, ask, tmp_path, monkeypatch):
        from firebolt_vl import picture

        def draw(*arguments, patches):
            Path(arguments[-1]).write_text("half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(picture, "draw", draw)
        out = tmp_path / "out.png"
        out.write_text("old")
        assert_refused(ask("--grounding", out, "--overwrite"), 1, "could not be written", "No space left")
        assert out.read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "out.png"]

    def test_words_are_found_without_their_punctuation(self):
        def words(text):
            return [text[start:end] for start, end in word_spans(text)]

        assert words('"What\'s at the top-left?" -- (now)') == ["What's", "at", "the", "top-left", "now"]
        assert words("7は どこ？") == ["7", "は", "ど", "こ"]
        assert words("🙂 नमस्ते!") == ["🙂", "नमस्ते"]
        assert words("?!") == []


def test_the_version_is_one_line(firebolt):
    import firebolt_vl

    assert firebolt("--version").out == f"firebolt {firebolt_vl.__version__}\n"


class TestUsage:
    """Exit code 2: the command itself has to be changed."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["ask"], ["IMAGE is missing", "firebolt ask --help"]),
            (["ask", "a.png"], ["QUESTION is missing"]),
            (["ask", "a.png", "b", "c"], ["a.png does not exist"]),
            (["ask", "a.png", "b", "--device", "tpu"], ["--device is tpu; expected one of auto, cpu, cuda"]),
            (["ask", "a.png", "b", "--seed", "x"], ["--seed is x; expected a valid integer"]),
            (["ask", "a.png", "b", "--seed=x"], ["--seed is x; expected a valid integer"]),
            (["ask", "a.png", "b", "--batch-size", "0"], ["--batch-size is 0; expected greater than or equal to 1"]),
            (["ask", "a.png", "b", "--out"], ["--out has no value; expected one"]),
            (["ask", "a.png", "b", "--json=x"], ["--json has a value; expected none"]),
            (["ask", "a.png", "b", "--loud"], ["--loud is not an option; did you mean --out?"]),
            (["eval"], ["the command is missing; see firebolt eval --help"]),
            (["shout"], ["shout is not a command"]),
            (["eval", "tin"], ["tin is not a command; did you mean tiny?"]),
        ],
    )
    def test_arguments_that_cannot_be(self, firebolt, arguments, words):
        result = firebolt(*arguments)
        assert_refused(result, 2, *words)

    @pytest.mark.parametrize("question", ["", "  ", "\n\t"])
    def test_a_blank_question(self, ask, question):
        assert_refused(ask(question=question), 2, "QUESTION is empty; expected one")

    def test_a_token_budget_of_nothing(self, ask):
        assert_refused(ask("--max-new-tokens", 0), 2, "--max-new-tokens is 0; expected at least 1")

    def test_a_missing_image(self, ask, tmp_path):
        assert_refused(ask(image=tmp_path / "no.png"), 2, "no.png", "no.png does not exist; check the path")

    def test_an_image_path_that_cannot_be(self, ask):
        assert_refused(ask(image="x" * 300), 2, "cannot be opened", "check the path")

    def test_a_directory_for_an_image(self, ask, tmp_path):
        assert_refused(ask(image=tmp_path), 2, "is a folder; expected one image file")

    def test_an_image_that_may_not_be_read(self, ask, image, monkeypatch):
        def forbidden(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", forbidden)  # the mode bits do not stop the superuser
        assert_refused(ask(), 2, "may not be read", "chmod u+r")

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("out.jpg", "ends in .png"),
            ("no/such/out.png", "but the folder no/such does not exist; make it first"),
            ("folder.png", ", a folder or a device; expected a file"),
            ("image.png", ", the image itself"),
            ("image.png/out.png", "the folder image.png does not exist"),
            ("x" * 300 + ".png", "cannot be written"),
        ],
    )
    def test_a_picture_that_cannot_be_written(self, ask, tmp_path, path, words, image):
        (tmp_path / "folder.png").mkdir()
        before = image.read_bytes()
        assert_refused(ask("--grounding", path), 2, f"--grounding is {path}", words)
        assert image.read_bytes() == before
        assert sorted(found.name for found in tmp_path.iterdir()) == ["folder.png", "image.png"]

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a place where even the superuser makes no file")
    def test_a_place_where_no_file_can_be_made(self, ask):
        assert_refused(ask("--grounding", "/proc/self/out.png"), 2, "cannot be written", "name another place")


class TestImageFailures:
    """Exit code 1: the file is there, but is no whole image."""

    def test_a_text_file_named_png(self, ask, tmp_path):
        (tmp_path / "text.png").write_text("not an image")
        assert_refused(ask(image=tmp_path / "text.png"), 1, "text.png is not an image that can be read; save it as PNG")

    def test_a_truncated_jpeg(self, ask, tmp_path):
        path = tmp_path / "cut.jpg"
        Image.effect_noise((200, 200), 90).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        assert_refused(ask(image=path), 1, "is damaged or incomplete")

    def test_a_decompression_bomb(self, ask, tmp_path):
        path = tmp_path / "bomb.png"
        Image.new("1", (20_000, 10_000)).save(path)
        assert_refused(ask(image=path), 1, "decompression bombs; scale the image down")


def spoil_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def shard(folder):
    """Two shards and their index in the place of the one file."""
    tensors = load_file(folder / "model.safetensors")
    names = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(tensors))}
    for name in set(names.values()):
        save_file({key: tensors[key] for key in tensors if names[key] == name}, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "model.safetensors").unlink()


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


class TestCheckpointFailures:
    @pytest.fixture
    def spoiled(self, checkpoint, tmp_path):
        folder = tmp_path / "spoiled"
        shutil.copytree(checkpoint, folder)
        return folder

    def refused(self, ask, folder, *words):
        before = sorted(folder.parent.iterdir())
        assert_refused(ask("--grounding", "out.png", checkpoint=folder), 1, *words)
        assert sorted(folder.parent.iterdir()) == before

    @pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl"])
    def test_pickled_weights_are_refused_and_never_opened(self, ask, spoiled, tmp_path, suffix):
        torch.save({"x": Bomb()}, spoiled / f"pytorch_model{suffix}")
        (spoiled / "model.safetensors").unlink()
        self.refused(ask, spoiled, f"pytorch_model{suffix}", "can run code", "safetensors copy")
        assert not (tmp_path / "unpickled").exists()

    def test_pickled_weights_beside_safetensors_are_never_opened(self, ask, spoiled, tmp_path):
        torch.save({"x": Bomb()}, spoiled / "pytorch_model.bin")
        assert ask(checkpoint=spoiled).code == 0
        assert not (tmp_path / "unpickled").exists()

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("config.json", "no config.json; is it a checkpoint"),
            ("model.safetensors", "no weights (model.safetensors); copy or download"),
            ("tokenizer.json", "no tokenizer (tokenizer.json); copy or download"),
            ("processor_config.json", "no processor (processor_config.json); copy or download"),
        ],
    )
    def test_a_half_copied_folder(self, ask, spoiled, name, words):
        (spoiled / name).unlink()
        self.refused(ask, spoiled, str(spoiled), words)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
    def test_a_truncated_file(self, ask, spoiled, name):
        truncate(spoiled / name)
        self.refused(ask, spoiled, "spoiled")

    @pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 100, b"[]", b"null"])
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
    def test_a_file_with_something_else_in_it(self, ask, spoiled, name, content):
        (spoiled / name).write_bytes(content)
        self.refused(ask, spoiled, "spoiled")

    def test_shards_that_are_whole_are_loaded(self, ask, spoiled):
        wanted = json.loads(ask("--json").out)["answer"]
        shard(spoiled)
        assert json.loads(ask("--json", checkpoint=spoiled).out)["answer"] == wanted

    def test_a_missing_shard(self, ask, spoiled):
        shard(spoiled)
        (spoiled / "model-00002-of-00002.safetensors").unlink()
        self.refused(ask, spoiled, "lacks 1 of its 2 weight files (model-00002-of-00002.safetensors)")

    def test_a_truncated_shard(self, ask, spoiled):
        shard(spoiled)
        truncate(spoiled / "model-00001-of-00002.safetensors")
        self.refused(ask, spoiled, "model-00001-of-00002.safetensors is damaged or incomplete")

    def test_a_shard_of_another_checkpoint(self, ask, spoiled):
        shard(spoiled)
        save_file({"other": torch.zeros(1)}, spoiled / "model-00001-of-00002.safetensors", {"format": "pt"})
        self.refused(ask, spoiled, "model-00001-of-00002.safetensors lacks")

    def test_an_index_that_points_elsewhere(self, ask, spoiled, tmp_path):
        shard(spoiled)
        index = spoiled / "model.safetensors.index.json"
        index.write_text(index.read_text().replace("model-00001-of-00002.safetensors", "../x.bin"))
        self.refused(ask, spoiled, "../x.bin", "no safetensors file of the checkpoint's folder")

    def test_a_tensor_of_another_shape(self, ask, spoiled):
        def change(tensors):
            tensors["model.connector.v_proj.weight"] = torch.zeros(3, 5)

        rewrite(spoiled, change)
        self.refused(ask, spoiled, "model.connector.v_proj.weight has shape [3, 5]", "do not belong together")

    def test_a_configuration_of_another_size(self, ask, spoiled):
        config = json.loads((spoiled / "config.json").read_text())
        config["text_config"]["intermediate_size"] *= 2
        spoil_config(spoiled, text_config=config["text_config"])
        self.refused(ask, spoiled, "has shape", "do not belong together")

    def test_a_missing_tensor(self, ask, spoiled):
        rewrite(spoiled, lambda tensors: tensors.pop("model.connector.v_proj.weight"))
        self.refused(ask, spoiled, "lacks model.connector.v_proj.weight (1 such tensors)")

    def test_a_tensor_too_many(self, ask, spoiled):
        rewrite(spoiled, lambda tensors: tensors.update(extra=torch.zeros(2)))
        self.refused(ask, spoiled, "one too many: extra")

    def test_another_models_checkpoint(self, ask, spoiled):
        spoil_config(spoiled, model_type="llava")
        self.refused(ask, spoiled, "is of a 'llava' model; expected a Firebolt-VL")

    def test_a_configuration_that_cannot_be(self, ask, spoiled):
        spoil_config(spoiled, connector="glue")
        self.refused(ask, spoiled, "cannot be loaded", "connector", "'glue'", "one of cmm, prepend, cross_attend")

    def test_code_that_comes_with_a_checkpoint_is_not_run(self, ask, spoiled, tmp_path):
        (spoiled / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
        auto_map = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoProcessor": "evil.Evil"}
        spoil_config(spoiled, auto_map=auto_map)
        for name in ("tokenizer_config.json", "processor_config.json"):
            content = json.loads((spoiled / name).read_text())
            (spoiled / name).write_text(json.dumps({**content, "auto_map": auto_map}))
        ask(checkpoint=spoiled)
        assert not (tmp_path / "ran").exists()

    def test_a_file_for_a_folder(self, ask, checkpoint):
        assert_refused(ask(checkpoint=checkpoint / "config.json"), 1, "is a file; name the folder")

    def test_a_folder_that_is_not_there(self, ask):
        assert_refused(ask(checkpoint="/no/such/folder"), 1, "checkpoint /no/such/folder", "check the path")

    def test_an_unknown_id_without_a_network(self, ask):
        assert_refused(
            ask(checkpoint="nobody/nothing"),
            1,
            "checkpoint nobody/nothing",
            "the hub",
            "check the name and the connection",
        )

    def test_the_embedded_checkpoint_missing_from_this_copy(self, firebolt, image, monkeypatch):
        def missing():
            raise FileNotFoundError("the embedded checkpoint is not in this copy of firebolt_vl; `make tiny` trains it")

        monkeypatch.setattr(loading, "embedded_checkpoint", missing)
        assert_refused(firebolt("ask", image, QUESTION), 1, "`make tiny` trains it", "--checkpoint")


class TestStopped:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["ask", "image.png", "what?"], "nothing was written; ask again"),
            (["ask", "--batch", "q.jsonl", "--out", "a.jsonl"], "the same command goes on with the other questions"),
            (["convert", "a", "b"], "nothing is left of the new folder"),
            (["eval", "tiny"], "nothing was kept of it; start again"),
            (["eval", "screens", "--checkpoint", "m"], "nothing was kept of it; start again"),
            (["watch", "image.png", "what?", "--model", "m"], "nothing was written; ask again"),
        ],
    )
    def test_ctrl_c_says_what_is_kept_and_how_to_go_on(self, firebolt, image, monkeypatch, arguments, words):
        def stopped(*_, **__):
            raise KeyboardInterrupt

        from firebolt_vl import batch, convert, watch

        for module in (asking, batch, convert, watch, loading):
            monkeypatch.setattr(module, "locate", stopped)
        result = firebolt(*arguments)
        result.err = result.err.removeprefix("\n")  # after the ^C of a terminal
        assert_refused(result, 130, "stopped", words)


class TestOtherFailures:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
    def test_a_device_that_is_not_there(self, ask):
        assert_refused(ask("--device", "cuda"), 1, "--device is cuda, but this PyTorch", "use --device cpu, or auto")

    def test_out_of_memory_is_said_in_one_line(self, ask, monkeypatch):
        from firebolt_vl.model import FireboltForConditionalGeneration

        def generate(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore\nlines")

        monkeypatch.setattr(FireboltForConditionalGeneration, "generate", generate)
        assert_refused(ask(), 1, "could not answer: CUDA out of memory")

    def test_what_nobody_thought_of_is_one_line_too(self, ask, monkeypatch):
        def broken(*_, **__):
            raise KeyError("what\nis this")

        monkeypatch.setattr(asking, "locate", broken)
        result = ask()
        assert result.code == 1
        assert result.err.count("\n") == 1
        assert "unexpected KeyError" in result.err
        assert "FIREBOLT_TRACEBACK=1" in result.err
        monkeypatch.setenv("FIREBOLT_TRACEBACK", "1")
        with pytest.raises(KeyError):
            ask()


class TestEvaluation:
    def test_the_report_of_the_checkpoint_is_printed(self, firebolt, checkpoint, monkeypatch):
        measured = types.ModuleType("firebolt_vl.evaluate.tiny")
        measured.evaluate_tiny = lambda folder, device, progress: {"on": [str(folder), device], "accuracy": 0.5}
        measured.print_report = lambda report: print(f"accuracy {report['accuracy']}")
        monkeypatch.setitem(sys.modules, "firebolt_vl.evaluate.tiny", measured)
        assert firebolt("eval", "tiny", "--checkpoint", checkpoint).out == "accuracy 0.5\n"
        told = firebolt("eval", "tiny", "--checkpoint", checkpoint, "--json", "--device", "cpu")
        assert json.loads(told.out) == {"on": [str(checkpoint), "cpu"], "accuracy": 0.5}

    def test_a_broken_checkpoint_is_refused_before_any_work(self, firebolt, tmp_path):
        assert_refused(firebolt("eval", "tiny", "--checkpoint", tmp_path), 1, "no config.json; is it a checkpoint")

    def test_a_checkpoint_whose_parts_do_not_fit_is_refused(self, firebolt, checkpoint, monkeypatch):
        def evaluate_tiny(folder, device, progress):
            raise RuntimeError("size mismatch\nand more")

        measured = types.ModuleType("firebolt_vl.evaluate.tiny")
        measured.evaluate_tiny, measured.print_report = evaluate_tiny, print
        monkeypatch.setitem(sys.modules, "firebolt_vl.evaluate.tiny", measured)
        result = firebolt("eval", "tiny", "--checkpoint", checkpoint)
        assert_refused(result, 1, "cannot be evaluated: size mismatch")

    def test_the_report_of_screens_is_printed(self, firebolt, checkpoint, monkeypatch):
        measured = types.ModuleType("firebolt_vl.evaluate.screens.report")
        measured.evaluate_screens = lambda folder, scenes, **about: {
            **{"on": str(folder), "scenes": scenes},
            **{name: about[name] for name in ("engine", "device")},
        }
        measured.print_report = lambda report: print(f"{report['scenes']} scenes")
        monkeypatch.setitem(sys.modules, "firebolt_vl.evaluate.screens.report", measured)
        given = ("eval", "screens", "--checkpoint", checkpoint, "--scenes", "9", "--device", "cpu")
        assert firebolt(*given).out == "9 scenes\n"
        told = json.loads(firebolt(*given, "--json").out)
        assert (told["on"], told["scenes"], told["engine"], told["device"]) == (str(checkpoint), 9, None, "cpu")

    def test_engines_that_are_unknown_or_not_there(self, firebolt, checkpoint, monkeypatch):
        given = ("eval", "screens", "--checkpoint", checkpoint, "--engine")
        assert_refused(firebolt(*given, "abbyy"), 2, "--engine is abbyy; expected one of tesseract, rapidocr")
        monkeypatch.setenv("PATH", "")
        assert_refused(firebolt(*given, "tesseract"), 1, "apt install tesseract-ocr")

    def test_a_missing_package_is_named(self, firebolt, checkpoint, monkeypatch):
        monkeypatch.setitem(sys.modules, "firebolt_vl.evaluate.tiny", None)
        assert_refused(firebolt("eval", "tiny", "--checkpoint", checkpoint), 1, "pip install 'firebolt-vl[train]'")


class TestProcess:
    """The installed command, as a process of its own."""

    def run(self, *arguments, cwd, **environment) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "firebolt_vl", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, **environment},
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def imported(self, *arguments, of):
        """Run a command in a process; its result, and which of some modules were imported in it."""
        code = (
            "import sys; from firebolt_vl import cli, starting as process; process.begin_command(); code = cli.run("
            "sys.argv[2:]); "
            "print(*({*sys.argv[1].split(',')} & {*sys.modules}), file=sys.stderr); sys.exit(code)"
        )
        command = [sys.executable, "-c", code, ",".join(of), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        *said, found = done.stderr.split("\n")[:-1]
        return Result(done.returncode, done.stdout, "".join(line + "\n" for line in said)), set(found.split())

    def test_the_help_needs_nothing_heavy(self):
        result, heavy = self.imported("--help", of=["torch", "transformers", "numpy", "matplotlib", "PIL"])
        assert (result.code, heavy) == (0, set())
        assert "Answer a question about an image" in result.out

    def test_a_file_that_is_no_image_is_refused_before_anything_heavy(self, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"no image")
        asked = ("ask", tmp_path / "broken.png", "what is it?")
        result, heavy = self.imported(*asked, of=["torch", "transformers", "matplotlib", "firebolt_vl.model"])
        assert_refused(result, 1, "broken.png")
        assert heavy == set()

    def test_an_answer_without_a_picture_needs_no_package_beside_the_model(self, checkpoint, image):
        """transformers imports accelerate where it is installed; the rest is for other commands and compiled models."""
        others = ["matplotlib", "sklearn", "datasets", "pyarrow", "peft", "trl", "av", "gradio", "tensorboard"]
        others += ["scipy", "pandas", "numba", "networkx", "torchvision", "triton"]
        others += ["torch._dynamo.utils", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp"]
        others += [
            "starlette",
            "uvicorn",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "openvino",
            "executorch",
            "firebolt_vl.train",
            "firebolt_vl.bench",
        ]
        asked = ("ask", image, "where?", "--checkpoint", checkpoint, "--max-new-tokens", 2)
        result, heavy = self.imported(*asked, of=others)
        assert (result.code, heavy) == (0, set())

    def test_an_answer_and_an_error_from_a_process_with_a_plain_terminal(self, checkpoint, image, tmp_path):
        plain = {"cwd": tmp_path, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
        asked = ["ask", image, "où? 🙂", "--checkpoint", checkpoint, "--max-new-tokens", 2]
        result = self.run(*asked, **plain)
        assert (result.code, result.err) == (0, "")
        result = self.run(*asked[:1], "naïve.png", *asked[2:], **plain)
        assert_refused(result, 2, "ve.png does not exist")
