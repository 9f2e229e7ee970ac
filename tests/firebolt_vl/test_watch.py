"""`firebolt watch`: what it answers, what it draws, and what it says where it cannot."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from foveated import MODES, VECTORS, make_foveated, original_arguments
from PIL import Image
from safetensors.torch import save_file
from tiny_models import make_tokenizer, write_checkpoint
from videos import grey, write_video

from firebolt_vl import cli, gaze
from firebolt_vl.model import CHAT_TEMPLATE, FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM
from firebolt_vl.model.cpu.quantized_models import QUANTIZE

QUESTION = "what happens?"
SIZE = {"height": 28, "width": 28}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_foveated(mode="autoregressive").save_pretrained(folder)
    FoveatedProcessor(FoveatedImageProcessor(size=SIZE), make_tokenizer(), CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 4, 10)


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """The command in this process, in a directory of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def watch(run, checkpoint, video):
    def watch(*arguments, video=video, question=QUESTION, model=checkpoint):
        return run("watch", video, question, "--model", model, "--max-new-tokens", 5, *arguments)

    return watch


def assert_refused(result, code: int, *words: str) -> None:
    """One line on stderr that has all `words`, nothing on stdout, nothing left over."""
    assert result[0] == code, result[2]
    assert result[1] == ""
    assert result[2].startswith("firebolt: ")
    assert result[2].count("\n") == 1
    assert "unexpected" not in result[2]
    for word in words:
        assert word in result[2]


class TestAnswers:
    def test_question_answer_and_times_are_printed(self, watch):
        code, out, err = watch()
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == QUESTION
        assert "4 frames looked at in" in lines[-1]
        assert "(autoregressive)" in lines[-1]  # the checkpoint's own mode
        assert "5 tokens in" in lines[-1]

    def test_in_8_and_4_bits_it_answers_as_the_model_that_is_saved_so(self, watch, checkpoint, tmp_path):
        for kind in ("int8", "int4"):
            reply = json.loads(watch("--json", "--quantize", kind)[1])
            assert reply["quantize"] == kind
            folder = shutil.copytree(checkpoint, tmp_path / kind)
            QUANTIZE[kind](FoveatedVLM.from_pretrained(checkpoint)).save_pretrained(folder)
            saved = json.loads(watch("--json", model=folder)[1])
            assert (saved["quantize"], saved["answer"]) == (kind, reply["answer"])
        assert_refused(watch("--quantize", "int8", model=folder), 1, "--quantize is int8", "in int4 already")

    @pytest.mark.parametrize("mode", MODES)
    def test_the_answer_is_the_models_greedy_one(self, watch, checkpoint, video, mode):
        model = FoveatedVLM.from_pretrained(checkpoint).eval()
        processor = FoveatedProcessor.from_pretrained(checkpoint)
        text = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
        inputs = processor(text=text, videos=video, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=5, mode=mode)[0, inputs["input_ids"].shape[1] :]
        code, out, err = watch("--json", "--mode", mode)
        assert (code, err) == (0, "")
        reply = json.loads(out)
        assert reply["answer"] == processor.decode(tokens, skip_special_tokens=True).strip()
        assert (reply["frames"], reply["visual_tokens"], reply["mode"]) == (4, 4, mode)
        assert reply["prompt_tokens"] == inputs["input_ids"].shape[1]
        assert reply["video"] == {"path": str(video), "width": 64, "height": 64, "seconds": 4.0}
        with torch.no_grad():
            visual = model.get_visual_tokens(inputs["frames"], mode=mode, return_attention=True)
        for look, shares, second in zip(reply["looks"], visual.maps()[0], range(4)):
            y, x = divmod(int(shares.argmax()), 2)
            assert look["box"] == [32 * y, 32 * x, 32 * (y + 1), 32 * (x + 1)]
            assert look["share"] == pytest.approx(shares.max().item(), rel=1e-4)
            assert look["time_s"] == second

    def test_frames_can_be_counted_and_a_seed_repeats(self, watch):
        assert json.loads(watch("--json", "--frames", 7)[1])["frames"] == 7
        answers = [json.loads(watch("--json", "--seed", seed)[1])["answer"] for seed in (1, 1, 2)]
        assert answers[0] == answers[1] != answers[2]

    def test_an_image_is_watched_too(self, watch, tmp_path):
        Image.fromarray(grey(1, 2)).save(tmp_path / "a.png")
        reply = json.loads(watch("--json", "--attention", "out.png", video=tmp_path / "a.png")[1])
        assert (reply["frames"], reply["video"]["seconds"], reply["looks"][0]["time_s"]) == (8, None, None)

    def test_the_originals_weights_beside_a_tokenizer_are_a_model(self, watch, tmp_path, monkeypatch):
        """Its backbones are those of the paper: tiny ones stand in for them here."""
        from firebolt_vl.model.foveated import configuration_foveated as configuration

        arguments = original_arguments()
        monkeypatch.setattr(configuration, "DINOV2_SMALL", arguments["vision_config"])
        monkeypatch.setattr(configuration, "SMOLLM2_135M", {**arguments["text_config"], "vocab_size": 260})
        state = VECTORS.under("param")
        wide = torch.randn(260, 32)
        state |= {"llm.model.embed_tokens.weight": wide, "llm.lm_head.weight": wide.clone()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
        make_tokenizer().save_pretrained(tmp_path)
        code, out, err = watch("--json", model=tmp_path)
        assert (code, err) == (0, "")
        assert json.loads(out)["mode"] == "coarse_fine"


class TestPictures:
    def test_a_page_and_an_animation(self, watch, tmp_path):
        for name, frames in (("out.png", 1), ("out.gif", 4)):
            code, out, err = watch("--attention", name)
            assert (code, err) == (0, "")
            assert f"where it looked: {name}" in out
            with Image.open(tmp_path / name) as image:
                assert getattr(image, "n_frames", 1) == frames
                assert np.asarray(image.convert("RGB")).std() > 10
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gif", "out.png"]
        for name in ("out.png", "out.gif"):  # its own pictures are replaced, others kept
            assert watch("--attention", name)[0] == 0
            Image.new("RGB", (8, 8)).save(tmp_path / name)
            before = (tmp_path / name).read_bytes()
            assert_refused(watch("--attention", name), 2, "which exists already", "--overwrite")
            assert (tmp_path / name).read_bytes() == before
            assert watch("--attention", name, "--overwrite")[0] == 0

    def test_the_overlay_glows_where_the_share_is_large(self):
        frame = Image.new("RGB", (80, 40), (60, 120, 60))
        shares = np.zeros((2, 4))
        shares[1, 3] = 1.0
        seen = np.asarray(gaze.overlay(frame, shares, 80)).astype(float).mean(-1)
        assert seen.shape == (40, 80)
        assert seen[30:, 70:].mean() > 2 * seen[:15, :50].mean()

    @pytest.mark.parametrize(("count", "width", "height"), [(1, 10, 2000), (9, 2000, 10), (64, 64, 64)])
    def test_any_number_and_shape_of_frames_can_be_drawn(self, tmp_path, count, width, height):
        frames = [Image.new("RGB", (width, height), "navy")] * count
        shares = np.random.default_rng(0).random((count, 16, 16))
        words = ["$x_{2}$ 数 🙂" * 40, ""]
        gaze.draw_page(frames, shares, [f"{i} s" for i in range(count)], *words, "coarse_fine", tmp_path / "a.png")
        gaze.draw_animation(frames, shares, [f"{i} s" for i in range(count)], tmp_path / "a.gif")
        assert np.asarray(Image.open(tmp_path / "a.png").convert("L")).std() > 5
        assert Image.open(tmp_path / "a.gif").n_frames in (1, count)


class TestRefusals:
    def test_videos(self, watch, tmp_path):
        assert_refused(watch(video="no.mp4"), 2, "no.mp4 does not exist; check the path of the video")
        assert_refused(watch(video=tmp_path), 2, "is a folder; expected one video file")
        (tmp_path / "empty.mp4").touch()
        assert_refused(watch(video="empty.mp4"), 1, "is empty")
        (tmp_path / "text.mp4").write_text("text " * 100)
        assert_refused(watch(video="text.mp4"), 1, "is not a video that can be read")
        write_video(tmp_path / "sound.mp4", 0, sound=True)
        assert_refused(watch(video="sound.mp4"), 1, "has only sound in it")
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        assert_refused(watch("--frames", 3, video="a.png"), 2, "--frames is 3, but a.png is an image")

    def test_without_pyav_an_image_still_works_and_a_video_says_what_is_missing(self, watch, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        assert_refused(watch(), 1, "reading videos needs PyAV", "pip install 'firebolt-vl[video]'")
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        assert watch(video="a.png")[0] == 0

    def test_arguments(self, watch, video, tmp_path):
        assert_refused(watch(question=" "), 2, "QUESTION is empty; expected one")
        assert_refused(watch("--frames", 0), 2, "--frames is 0; expected at least 1")
        assert_refused(
            watch("--mode", "fine"), 2, "--mode is fine; expected one of coarse_only, coarse_fine, autoregressive"
        )
        assert_refused(
            watch("--attention", "a.jpg"), 2, "--attention is a.jpg; expected a file that ends in .png or .gif"
        )
        assert_refused(watch("--attention", "no/a.png"), 2, "but the folder no does not exist; make it first")
        (tmp_path / "b.gif").mkdir()
        assert_refused(watch("--attention", "b.gif"), 2, "b.gif, a folder or a device; expected a file")
        os.link(video, tmp_path / "same.gif")
        assert_refused(watch("--attention", "same.gif"), 2, "same.gif, the video itself")
        assert_refused(watch(question="long " * 200), 1, "tokens long; expected fewer than 256")

    def test_models(self, watch, run, video, checkpoint, tmp_path):
        assert_refused(run("watch", video, QUESTION), 2, "--model")
        assert_refused(watch(model="no/such/folder"), 1, "checkpoint no/such/folder", "check the path")
        write_checkpoint(tmp_path / "firebolt")
        assert_refused(watch(model="firebolt"), 1, "is of a 'firebolt_vl' model; expected a foveated model")
        (tmp_path / "bare").mkdir()
        make_foveated().save_pretrained(tmp_path / "bare")
        assert_refused(watch(model="bare"), 1, "has no tokenizer")
        make_tokenizer().save_pretrained(tmp_path / "bare")
        assert_refused(watch(model="bare"), 1, "has no processor")
        FoveatedProcessor(FoveatedImageProcessor(size=SIZE), make_tokenizer()).save_pretrained(tmp_path / "bare")
        data = (tmp_path / "bare" / "model.safetensors").read_bytes()
        (tmp_path / "bare" / "model.safetensors").write_bytes(data[: len(data) // 2])
        assert_refused(watch(model="bare"), 1, "model.safetensors is damaged or incomplete")
