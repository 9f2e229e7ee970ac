"""What is behind the page of `firebolt demo`: the answers of `ask` and `watch`, with what every word looked at."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from commands import assert_refused
from foveated import write_foveated
from originals import letter_tokenizer, write_original
from PIL import Image
from tiny_models import make_model, make_processor, write_checkpoint
from videos import write_video

from firebolt_vl import embedded_checkpoint
from firebolt_vl.ask import ask, inputs_of
from firebolt_vl.demo import drawn, serving
from firebolt_vl.demo.answering import open_model
from firebolt_vl.demo.hearing import Heard, Piece, Stopped, follow
from firebolt_vl.demo.talk import Effect, Marked, Settings, Talk, Turn
from firebolt_vl.errors import Failure, Misuse
from firebolt_vl.shown import percent
from firebolt_vl.watch import watch

QUESTION = "what happens?"
SHORT = Settings(max_new_tokens=6)


def deaf(piece: str) -> None:
    """Hear nothing."""


@pytest.fixture(scope="module")
def embedded():
    return open_model(None, "cpu", "auto", None)


@pytest.fixture(scope="module")
def foveated_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foveated")
    write_foveated(folder)
    return folder


@pytest.fixture(scope="module")
def foveated(foveated_folder):
    return open_model(str(foveated_folder), "cpu", "auto", None)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("video") / "a.mp4", 4, 10))


@pytest.fixture
def digits(request):
    return str(request.config.rootpath / "examples" / "digits-1.png")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Let what the command tells gradio by the environment end with the test."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")


def made(text: str) -> Turn:
    return Turn(text, text, True, text, torch.zeros(1))


class TestImages:
    @pytest.mark.parametrize("seed", [None, 3])
    def test_the_answer_is_that_of_ask_and_comes_in_pieces(self, embedded, digits, seed):
        pieces = []
        question = "what digit is at the top left?"
        turn = embedded.answer(Talk(digits), question, Settings(seed=seed), pieces.append)
        wanted = ask(digits, question, device="cpu", seed=seed)
        assert (turn.answer, turn.complete, turn.doubts) == (wanted.answer, wanted.complete, wanted.doubts)
        assert "".join(pieces) == turn.answer
        assert turn.facts[0] == f"probability {percent(wanted.probability)}"

    def test_words_have_the_weights_that_the_model_gives_them(self, embedded, digits):
        question = "what colour does the bottom right digit have?"
        turn = embedded.answer(Talk(digits), question, Settings(), deaf)
        text = "".join(question[word.start : word.end] for word in turn.question_words)
        assert text == "whatcolourdoesthebottomrightdigithave"
        assert [turn.answer[word.start : word.end] for word in turn.answer_words] == turn.answer.split()
        assert turn.boxes[0] == [0, 0, 0, 1, 1]
        assert len(turn.boxes) == 5
        for word in (*turn.question_words, *turn.answer_words):
            assert sum(word.weights) == pytest.approx(1, abs=1e-4)
        right = next(word for word in turn.question_words if question[word.start : word.end] == "bottom")
        assert right.weights[3] + right.weights[4] > right.weights[1] + right.weights[2]

    def test_a_word_is_as_likely_as_its_tokens_together(self, embedded, request):
        path = str(request.config.rootpath / "examples" / "digits-3-some-empty.png")
        turn = embedded.answer(Talk(path), "where can you see the 7?", Settings(), deaf)
        assert turn.answer == "top left"
        inputs = inputs_of(embedded.loaded, embedded.open(path).frames[0], turn.prompt)
        ids = torch.cat([inputs["input_ids"], turn.tokens[None]], 1)
        with torch.no_grad():
            logits = embedded.loaded.model(
                **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            ).logits[0, -len(turn.tokens) - 1 : -1]
        chances = logits.softmax(-1).gather(-1, turn.tokens[:, None])[:, 0].tolist()
        texts = [embedded.loaded.processor.decode([token], skip_special_tokens=True).strip() for token in turn.tokens]
        assert texts == ["top", "left", ""]
        assert [word.probability for word in turn.answer_words] == pytest.approx(chances[:2], rel=1e-4)

    def test_what_it_rests_on_is_the_occlusion_of_the_model(self, embedded, digits):
        talk = Talk(digits)
        talk.turns.append(embedded.answer(talk, "what digit is at the top left?", Settings(), deaf))
        effects = embedded.rests_on(talk)
        assert [[effect.frame, *effect.box] for effect in effects] == talk.turns[0].boxes
        assert max(effects, key=lambda effect: effect.nats).box == [0, 0, 0.5, 0.5]
        assert max(effect.nats for effect in effects) > 3

    def test_earlier_turns_are_part_of_the_prompt_only_where_asked_for(self, embedded, digits):
        talk = Talk(digits)
        for _ in range(2):
            talk.turns.append(embedded.answer(talk, "is there a 3?", Settings(), deaf))
        assert talk.turns[0].prompt == talk.turns[1].prompt
        remembered = embedded.answer(talk, "is there a 3?", Settings(remember=True), deaf)
        assert remembered.prompt.count("is there a 3?") == 3
        assert remembered.prompt.count("yes<|im_end|>") == 2
        assert remembered.prompt.endswith(embedded.answer(talk, "is there a 3?", Settings(), deaf).prompt[-40:])

    @pytest.mark.parametrize(
        ("kind", "weighs"),
        [
            ("cmm", True),
            ("patches", True),
            ("prepend", False),
            ("routed", False),
            ("no template", True),
            ("original", True),
        ],
    )
    def test_every_kind_of_checkpoint_answers(self, tmp_path, image, kind, weighs):
        if kind == "original":
            write_original(tmp_path / "model")
            letter_tokenizer().save_pretrained(tmp_path / "model")
        elif kind == "patches":
            make_model(grids="both").save_pretrained(tmp_path / "model")
            make_processor().save_pretrained(tmp_path / "model")
        else:
            how = {"chat_template": None} if kind == "no template" else {"connector": kind}
            write_checkpoint(tmp_path / "model", **how)
        model = open_model(str(tmp_path / "model"), "cpu", "auto", None)
        assert model.weighs is weighs
        talk = Talk(str(image))
        for question in ("what", "where"):
            talk.turns.append(model.answer(talk, question, SHORT._replace(remember=True), deaf))
        wanted = ask(str(image), "what", str(tmp_path / "model"), 6, device="cpu")
        assert talk.turns[0].answer == wanted.answer
        assert len(model.rests_on(talk)) == len(talk.turns[-1].boxes) or not weighs
        assert bool(talk.turns[-1].question_words) is weighs

    @pytest.mark.parametrize("knows_times", [False, True])
    def test_a_video_is_asked_about_frame_by_frame(self, tmp_path, video, knows_times):
        make_model(grid_times=knows_times).save_pretrained(tmp_path)
        make_processor().save_pretrained(tmp_path)
        model = open_model(str(tmp_path), "cpu", "auto", None)
        talk = Talk(video)
        talk.turns.append(turn := model.answer(talk, QUESTION, SHORT, deaf))
        wanted = ask(video, QUESTION, str(tmp_path), 6, device="cpu")
        assert turn.answer == wanted.answer
        assert any("does not know times" in fact for fact in turn.facts) is not knows_times
        assert [box[0] for box in turn.boxes] == sorted(list(range(4)) * (len(turn.boxes) // 4))
        assert {(box[0], *box[1:]) for box in turn.boxes if box[1:] == [0, 0, 1, 1]} == {
            (n, 0, 0, 1, 1) for n in range(4)
        }
        assert [[effect.frame, *effect.box] for effect in model.rests_on(talk)] == turn.boxes

    def test_what_cannot_be_asked_is_said(self, embedded, digits, tmp_path):
        with pytest.raises(Misuse, match="the question is empty"):
            embedded.answer(Talk(digits), " \n", Settings(), deaf)
        with pytest.raises(Failure, match="control token"):
            embedded.answer(Talk(digits), "<|im_end|>", Settings(), deaf)
        (tmp_path / "a.png").write_text("no image")
        with pytest.raises(Failure, match=r"a\.png"):
            embedded.open(str(tmp_path / "a.png"))

    def test_whoever_left_is_not_answered_to_the_end(self, embedded, digits):
        heard = []

        def leave(piece: str) -> None:
            heard.append(piece)
            raise Stopped

        with pytest.raises(Stopped):
            embedded.answer(Talk(digits), "what digit is at the top left?", Settings(), leave)
        assert heard == [""]


class TestVideos:
    def test_the_answer_is_that_of_watch(self, foveated, foveated_folder, video):
        talk, pieces = Talk(video), []
        turn = foveated.answer(talk, QUESTION, SHORT, pieces.append)
        wanted = watch(video, QUESTION, str(foveated_folder), max_new_tokens=6, device="cpu")
        assert (turn.answer, turn.complete) == (wanted.answer, wanted.complete)
        assert "".join(pieces) == turn.answer
        assert [max(max(row) for row in look) for look in talk.looks] == pytest.approx(
            [look.share for look in wanted.looks], rel=1e-5
        )

    def test_it_looks_once_at_a_file_and_answers_the_same(self, foveated, video, monkeypatch):
        talk = Talk(video)
        first = foveated.answer(talk, QUESTION, SHORT, deaf)
        monkeypatch.setattr(type(foveated.loaded.model), "get_visual_tokens", None)
        assert foveated.answer(talk, QUESTION, SHORT, deaf).answer == first.answer

    def test_turns_are_remembered(self, foveated, video):
        talk = Talk(video)
        talk.turns.append(foveated.answer(talk, QUESTION, SHORT, deaf))
        assert QUESTION in foveated.answer(talk, "and then?", SHORT._replace(remember=True), deaf).prompt
        assert QUESTION not in foveated.answer(talk, "and then?", SHORT, deaf).prompt

    def test_an_answer_rests_on_a_frame_as_much_as_it_is_less_likely_without_it(self, foveated, video):
        """Beside a model that never gets the frame: a hidden one is nothing to the decoder."""
        talk = Talk(video)
        talk.turns.append(turn := foveated.answer(talk, QUESTION, SHORT, deaf))
        effects = foveated.rests_on(talk)
        assert [effect.frame for effect in effects] == [0, 1, 2, 3]

        def score(frames: list[int]) -> float:
            ids = foveated.loaded.processor.tokenizer(turn.prompt, return_tensors="pt", add_special_tokens=False)
            ids = torch.cat([ids["input_ids"], turn.tokens[None]], 1)
            with torch.no_grad():
                logits = foveated.loaded.model(
                    ids, mode="coarse_fine", visual_tokens=talk.visual.tokens[:, frames], use_cache=False
                ).logits[0, -len(turn.tokens) - 1 : -1]
            return logits.log_softmax(-1).gather(-1, turn.tokens[:, None]).sum().item()

        for effect in effects:
            rest = [frame for frame in range(4) if frame != effect.frame]
            assert effect.nats == pytest.approx(score([0, 1, 2, 3]) - score(rest), abs=1e-4)
        assert max(abs(effect.nats) for effect in effects) > 1e-3

    def test_an_image_is_looked_at_several_times_and_shown_so(self, foveated, image):
        talk = Talk(str(image), *drawn.picture_urls(foveated.open(str(image))))
        talk.turns.append(foveated.answer(talk, QUESTION, SHORT, deaf))
        assert len(talk.pictures) == 1
        assert drawn.view(talk).count("<img") == len(talk.looks) == len(foveated.rests_on(talk)) == 8
        assert "look 8" in drawn.view(talk)

    def test_it_is_quantised_and_keeps_its_dtype(self, foveated_folder):
        assert open_model(str(foveated_folder), "cpu", "auto", "int8").loaded.model.config.quantized == "int8"
        with pytest.raises(Misuse, match="--dtype is float32"):
            open_model(str(foveated_folder), "cpu", "float32", None)


class TestHearing:
    @pytest.fixture
    def worker(self):
        with ThreadPoolExecutor(1) as worker:
            yield worker

    def test_all_is_heard_and_the_work_returned(self, worker):
        def work(hear):
            for piece in ("a", "", " b", " c"):
                hear(piece)
            return 7

        def followed():
            ended.append((yield from follow(worker, work)))

        ended = []
        said = list(followed())
        assert ended == [7]
        assert said[-1] == "a b c"
        assert all("a b c".startswith(text) for text in said)

    def test_a_failure_comes_through(self, worker):
        def work(hear):
            raise Failure("broken")

        with pytest.raises(Failure, match="broken"):
            next(follow(worker, work))

    def test_work_ends_once_nobody_follows(self, worker):
        ended, left = [], threading.Event()

        def work(hear):
            hear("a")
            left.wait()
            try:
                hear("")
            except Stopped:
                ended.append(True)
                raise

        following = follow(worker, work)
        assert next(following) == "a"
        following.close()
        left.set()
        worker.submit(lambda: None).result()  # its turn comes when the work has ended
        assert ended == [True]

    def test_words_know_the_tokens_that_they_are_made_of(self, embedded):
        heard = Heard(embedded.loaded.processor, deaf)
        heard.pieces = [Piece("to", 0, 1), Piece("p", 1, 2), Piece(" le", 2, 4), Piece("ft.", 4, 6)]
        assert heard.words("top left.") == [(0, 3, 0, 2), (4, 8, 2, 6)]
        assert heard.words("another answer") == []


class TestDrawn:
    @pytest.mark.parametrize("text", ["<script>alert(1)</script>", "${alert(1)}", "{{value}}", "`'\"&"])
    def test_what_people_and_models_write_is_text(self, text):
        talk = Talk("a", ["data:,"], [""], [made(text)])
        for written in (drawn.turns(talk), drawn.speaking(text, text), drawn.notice(text)):
            assert text not in written
            for sign in ("<script", "${", "{{", "`"):
                assert sign not in written

    def test_every_letter_of_a_text_is_there_once_its_words_are_marked(self):
        turn = made(" what  is, it? ")
        turn.question_words = [Marked(1, 5, [0.25, 1.0]), Marked(7, 9, [0.0, 0.0], 0.2), Marked(11, 13)]
        written = drawn.turns(Talk("a", ["data:,"], [""], [turn]))
        for part in (">what</span>  <span", ">is</span>, <span", ">it</span>? "):
            assert part in written
        assert 'data-w="QP8=" data-top="1.0000"' in written  # 64 and 255
        assert 'fb-unsure" tabindex="0" data-w="AAA=" data-top="0.0000" title="probability 20 %"' in written

    def test_effects_are_told_from_noise(self):
        talk = Talk("a", ["data:,"], [""], [made("a")])
        parts = [Effect(0, (0, 0, 1, 1), -0.004), Effect(0, (0, 0, 0.5, 1), 2.0), Effect(0, (0.5, 0, 1, 1), -1.0)]
        shown = drawn.view(talk, parts)
        for text in (">0.00<", ">+2.00<", ">−1.00<", "fb-whole", "What the last answer rests on"):
            assert text in shown
        assert "Hiding any one part changes nothing" in drawn.view(talk, parts[:1])
        frames = Talk("a", ["data:,"] * 2, ["0 s", "1 s"], [made("a")])
        assert "fb-whole" not in drawn.view(frames, [Effect(frame, (0, 0, 1, 1), 1.0) for frame in range(2)])

    def test_pictures_are_made_small(self):
        from firebolt_vl.watch import Source

        [alone], _ = drawn.picture_urls(Source([Image.new("RGB", (3000, 2000))], None, None))
        many, captions = drawn.picture_urls(Source([Image.new("RGB", (3000, 2000))] * 3, [0.0, 1.0, 2.0], 3.0))
        assert alone.startswith("data:image/jpeg;base64,")
        assert len(alone) > len(many[0])
        assert captions == ["0.0 s", "1.0 s", "2.0 s"]


class TestServing:
    def test_a_port_that_is_taken_is_refused_and_passed_over_where_none_is_named(self):
        with serving.open_socket("127.0.0.1", None) as first, serving.open_socket("127.0.0.1", None) as second:
            taken = first.getsockname()[1]
            assert taken != second.getsockname()[1]
            with pytest.raises(Misuse, match=f"--port is {taken}, which cannot be had"):
                serving.open_socket("127.0.0.1", taken)

    @pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70 + ".b"])
    def test_an_address_that_is_not_here_is_refused(self, host):
        with pytest.raises(Misuse, match="--host is "):
            serving.open_socket(host, None)

    @pytest.mark.parametrize(
        ("host", "local", "status"),
        [
            ("localhost:7860", True, 200),
            ("127.0.0.1:7860", True, 200),
            ("[::1]:7860", True, 200),
            ("elsewhere.example", True, 403),
            ("", True, 403),
            ("elsewhere.example", False, 200),
        ],
    )
    def test_a_local_page_answers_this_machine_alone(self, host, local, status):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "headers": [(b"host", host.encode())]}
        asyncio.run(serving.Guard(app, local)(scope, None, send))
        assert sent[0]["status"] == status
        assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]

    def test_without_gradio_the_command_says_what_to_install(self, firebolt, monkeypatch):
        monkeypatch.setitem(sys.modules, "gradio", None)
        assert_refused(firebolt("demo"), 1, "the page needs gradio", "pip install 'firebolt-vl[demo]'")

    def test_a_checkpoint_that_is_not_there_is_refused(self, firebolt):
        pytest.importorskip("gradio")
        assert_refused(firebolt("demo", "--checkpoint", "/nowhere"), 1, "/nowhere")


@pytest.mark.parametrize(
    ("signal_number", "told"), [(signal.SIGINT, "firebolt: the page is closed\n"), (signal.SIGTERM, "")]
)
def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(tmp_path, signal_number, told):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "firebolt_vl", "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:9", "GRADIO_SHARE": "True"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as running:
        try:
            address = running.stdout.readline().strip()
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/", timeout=60) as page:
                assert page.status == 200
                assert b"Firebolt-VL" in page.read()
            assert [path.name[:14] for path in tmp_path.iterdir()] == ["firebolt-demo-"]
            running.send_signal(signal_number)
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, said) == (0, told)
    assert list(tmp_path.iterdir()) == []


class TestPage:
    @pytest.fixture
    def page(self, embedded):
        pytest.importorskip("gradio")
        from firebolt_vl.demo.page import Page

        return Page(embedded)

    def test_a_question_is_answered_and_the_line_emptied(self, page, digits):
        talk, view, said, now = page.show(digits)
        assert "<img" in view
        assert (said, now) == ("", "")
        updates = list(page.ask("what digit is at the top left?", talk, 128, None, False))
        assert "fb-cursor" in updates[0][3]
        assert ">8</span>" in updates[-1][2]
        assert updates[-1][3:] == ("", "")
        view, now = page.rest_on(talk)
        assert "fb-effect" in view
        assert now == ""
        talk, view, said, now = page.begin_again(talk)
        assert "<img" in view
        assert talk.turns == []

    def test_what_goes_wrong_is_said_and_the_question_kept(self, page, digits, tmp_path):
        [(_, _, _, now, left)] = page.ask("why?", Talk(), 128, None, False)
        assert "there is no picture to ask about yet" in now
        assert left == "why?"
        talk, *_ = page.show(digits)
        *_, last = page.ask("<|im_end|>", talk, 128, None, False)
        assert "control token" in last[3]
        assert last[4] == "<|im_end|>"
        (tmp_path / "a.txt").write_text("text")
        talk, _, _, now = page.show(str(tmp_path / "a.txt"))
        assert talk.path is None
        assert "a.txt" in now
        assert str(tmp_path) not in now
        assert "nothing was answered yet" in page.rest_on(talk)[1]

    def test_examples_are_those_of_the_repository_and_are_answered(self, page, request):
        from firebolt_vl.demo.page import ASKED, EXAMPLES

        for number, (name, question) in enumerate(ASKED):
            kept = request.config.rootpath / "examples" / name
            assert (EXAMPLES / name).read_bytes() == kept.read_bytes()
            talk, *_, asked = page.show_example(number)
            assert asked == question
            *_, last = page.ask(asked, talk, 128, None, False)
            assert "a guess" not in last[2]
        assert page.model.folder == embedded_checkpoint()

    def test_nothing_is_told_to_others(self, page):
        blocks = page.build()
        assert blocks.analytics_enabled is False
        app = serving.make_app(page, True, 1)
        assert app.openapi_url is None
