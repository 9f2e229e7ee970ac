"""The page of `firebolt demo` in a real browser without a window (`make test-page`; skipped where there is none)."""

import itertools
import os
import string
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from foveated import write_foveated
from tiny_models import make_model, make_processor, make_tokenizer
from videos import write_video

if not os.environ.get("FIREBOLT_PAGE"):
    pytest.importorskip("gradio")
    pytest.importorskip("playwright.sync_api")

import uvicorn
from browsers import launch
from playwright.sync_api import Error, sync_playwright

from firebolt_vl.ask import ask
from firebolt_vl.demo.answering import open_model
from firebolt_vl.demo.hearing import Stopped
from firebolt_vl.demo.page import ASKED, EXAMPLES, Page
from firebolt_vl.demo.serving import make_app, open_socket
from firebolt_vl.demo.talk import Settings, Talk

MOST_MB = 32
# Of anything that is waited for, in milliseconds: a busy machine may take long, and no longer than a person waits.
PATIENCE = 60_000
EXAMPLE = str(EXAMPLES / ASKED[0][0])


@contextmanager
def served(checkpoint: str | None):
    """A page over a checkpoint, in a thread: its address and its model."""
    page = Page(open_model(checkpoint, "cpu", "auto", None))
    app = make_app(page, local=True, most_mb=MOST_MB)
    with open_socket("127.0.0.1", None) as opened:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        running = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        running.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}", page.model
        finally:
            server.should_exit = True
            running.join()


@pytest.fixture(scope="module", autouse=True)
def uploads(tmp_path_factory):
    """A folder of uploads of our own, as the command has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield


@pytest.fixture(scope="module")
def browser():
    try:
        with sync_playwright() as playwright, launch(playwright) as browser:
            yield browser
    except Error as error:
        if os.environ.get("FIREBOLT_PAGE") or "Executable doesn't exist" not in str(error):
            raise
        pytest.skip("no Chromium is here")


@pytest.fixture(scope="module")
def embedded():
    with served(None) as (address, model):
        yield address, model


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A model of random weights that answers in letters and never ends."""
    folder = tmp_path_factory.mktemp("wordy")
    model = make_model()
    letters = [id for token, id in make_tokenizer().get_vocab().items() if token in (*string.ascii_letters, "Ġ")]
    said = torch.zeros(260, 1)
    said[letters] = 1
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(said)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    with served(str(folder)) as (address, model):
        yield address, model


@pytest.fixture
def visit(browser):
    """Open a page at an address; whatever goes wrong in it, or is asked of another address, fails the test."""
    opened, wrong = [], []

    def visit(address: str):
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.set_default_timeout(PATIENCE)
        opened.append(tab)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: _is_elsewhere(request.url, address) and wrong.append(request.url))
        tab.goto(address)
        tab.wait_for_selector("#fb-ask textarea")
        return tab

    yield visit
    for tab in opened:
        tab.close()
    assert wrong == []


def _is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def upload(tab, path) -> None:
    tab.set_input_files("#fb-file input[type=file]", str(path))


def show(tab, path=EXAMPLE) -> None:
    """Upload a file and wait until it is shown."""
    shown = "document.querySelector('#fb-view img')?.src"
    before = tab.evaluate(f"() => {shown} ?? null")
    upload(tab, path)
    tab.wait_for_function(f"before => {shown} && {shown} !== before", arg=before)


def ask_for(tab, question: str, turns: int = 1) -> str:
    """Ask, wait until there are so many turns, the newest first, and return its answer."""
    tab.fill("#fb-ask textarea", question)
    tab.keyboard.press("Enter")
    tab.wait_for_function("turns => document.querySelectorAll('#fb-said .fb-turn').length === turns", arg=turns)
    return tab.locator("#fb-said .fb-answer").first.inner_text()


def lit(tab) -> list[float]:
    """How dark each part of the picture is, 0 where a word looked most."""
    return tab.eval_on_selector_all(
        "#fb-view .fb-light > div", "cells => cells.map(cell => Number(cell.style.getPropertyValue('--dark')))"
    )


def word(tab, text: str):
    return tab.locator("#fb-said .fb-word", has_text=text).first


def test_an_upload_is_asked_about_and_words_light_up_where_they_looked(visit, embedded):
    tab = visit(embedded[0])
    show(tab)
    assert ask_for(tab, "what digit is at the top left?") == "8"
    assert "probability over 99 %" in tab.inner_text("#fb-said .fb-facts")
    assert lit(tab) == []
    looks = {}
    for text in ("top", "left"):
        word(tab, text).hover()
        tab.wait_for_selector("#fb-view.fb-lit")
        looks[text] = lit(tab)
        assert f"“{text}” looked where it is bright" in tab.inner_text(".fb-legend")
    turn = embedded[1].answer(Talk(EXAMPLE), "what digit is at the top left?", Settings(), lambda piece: None)
    for marked in turn.question_words:
        text = turn.question[marked.start : marked.end]
        if text in looks:
            most = max(marked.weights)
            assert looks[text] == pytest.approx([0.8 * (1 - w / most) for w in marked.weights[1:]], abs=0.01)
    assert looks["top"] != looks["left"]
    tab.mouse.move(5, 5)
    tab.wait_for_function("() => !document.querySelector('#fb-view.fb-lit')")
    assert lit(tab) == []
    tab.locator("#fb-said .fb-answer .fb-word").first.focus()  # without a mouse
    tab.wait_for_selector("#fb-view.fb-lit")


def test_what_an_answer_rests_on_is_shown_on_demand(visit, embedded):
    tab = visit(embedded[0])
    tab.click("#fb-rests")
    tab.wait_for_selector("#fb-now .fb-notice")
    assert "nothing was answered yet" in tab.inner_text("#fb-now")
    show(tab)
    ask_for(tab, "what digit is at the top left?")
    tab.click("#fb-rests")
    tab.wait_for_selector("#fb-view .fb-effect")
    numbers = [float(text.replace("−", "-")) for text in tab.locator("#fb-view .fb-effect b").all_inner_texts()]
    assert len(numbers) == 5
    assert max(numbers) == numbers[1] > 3
    if picture := os.environ.get("FIREBOLT_PICTURE"):
        ask_for(tab, "which digit is at the bottom right?", turns=2)
        word(tab, "bottom").hover()
        tab.wait_for_selector("#fb-view.fb-lit")
        tab.wait_for_timeout(500)  # colours fade in
        tab.screenshot(path=picture)


def test_an_answer_is_seen_while_it_is_made(visit, wordy):
    tab = visit(wordy[0])
    show(tab)
    tab.evaluate(
        """() => {
            window.seen = [];
            const now = document.querySelector('#fb-now');
            new MutationObserver(() => {
                const answer = now.querySelector('.fb-answer');
                if (answer && answer.textContent && answer.textContent !== window.seen.at(-1))
                    window.seen.push(answer.textContent);
            }).observe(now, { childList: true, subtree: true, characterData: true });
        }"""
    )
    answer = ask_for(tab, "what is it?")
    seen = tab.evaluate("() => window.seen")
    assert len(seen) >= 3
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
    assert answer.startswith(seen[0].strip())
    assert len(answer) > len(seen[0])


def test_several_turns_examples_and_a_new_conversation(visit, embedded):
    tab = visit(embedded[0])
    tab.locator("#fb-examples tbody tr, #fb-examples .tr-body").nth(1).click()
    tab.wait_for_selector("#fb-view img")
    tab.wait_for_function("() => document.querySelector('#fb-ask textarea').value !== ''")
    tab.click("#fb-go")
    tab.locator("#fb-said .fb-answer").first.wait_for()
    assert tab.inner_text("#fb-said .fb-answer") == "top left"
    assert ask_for(tab, "is an 8 in the image?", turns=2) == "no"
    ask_for(tab, "who painted it?", turns=3)
    assert "a guess:" in tab.locator("#fb-said .fb-turn").first.inner_text()
    tab.click("#fb-again")
    tab.wait_for_function("() => !document.querySelector('#fb-said .fb-turn')")
    assert tab.locator("#fb-view img").count() == 1


def test_twenty_questions_at_once_are_all_answered(visit, embedded):
    questions = [f"how many {digit}s are there?" for digit in range(10)] + [f"is there a {i}?" for i in range(10)]
    tabs = [visit(embedded[0]) for _ in questions]
    for tab, question in zip(tabs, questions):
        show(tab)
        tab.fill("#fb-ask textarea", question)
    at = tabs[0].evaluate("() => Date.now()") + 3000
    for tab in tabs:
        tab.evaluate("at => { setTimeout(() => document.querySelector('#fb-go').click(), at - Date.now()); }", at)
    for tab, question in zip(tabs, questions):
        tab.locator("#fb-said .fb-answer").first.wait_for()
        assert tab.inner_text("#fb-said .fb-question") == question
        assert tab.inner_text("#fb-said .fb-answer") == ask(EXAMPLE, question, device="cpu").answer


def test_files_that_cannot_be_taken_are_refused_and_the_page_goes_on(visit, embedded, tmp_path):
    tab = visit(embedded[0])
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    upload(tab, large)
    tab.get_by_text("exceed", exact=False).first.wait_for()
    assert tab.locator("#fb-view img").count() == 0
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "notes.png").write_text("text under an image's name")
    tab = visit(embedded[0])
    upload(tab, tmp_path / "notes.txt")
    tab.get_by_text("Invalid file type", exact=False).first.wait_for()
    upload(tab, tmp_path / "notes.png")
    tab.wait_for_selector("#fb-now .fb-notice")
    told = tab.inner_text("#fb-now")
    assert "notes.png" in told
    assert "/" not in told.replace("and/or", "")
    show(tab)
    assert ask_for(tab, "what digit is at the top left?") == "8"


def test_whoever_closes_the_tab_does_not_keep_the_model(visit, browser, wordy, monkeypatch):
    """The model talks without end, as far as its listener lets it."""
    address, model = wordy
    begun, ended = threading.Event(), threading.Event()

    def talk_on(talk, question, settings, hear):
        begun.set()
        try:
            while True:
                hear("on and ")
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    for leave in ("close", "stop"):
        tab = visit(address) if leave == "stop" else browser.new_page()
        if leave == "close":
            tab.goto(address)
            tab.wait_for_selector("#fb-ask textarea")
        show(tab)
        with monkeypatch.context() as patch:
            patch.setattr(model, "answer", talk_on)
            tab.fill("#fb-ask textarea", "and?")
            tab.keyboard.press("Enter")
            tab.wait_for_function("() => document.querySelector('#fb-now').textContent.includes('on and on')")
            assert begun.is_set()
            tab.close() if leave == "close" else tab.click("#fb-stop")
            assert ended.wait(PATIENCE / 1000)
        begun.clear()
        ended.clear()
    tab.wait_for_selector("#fb-now .fb-notice")
    assert "stopped" in tab.inner_text("#fb-now")
    other = visit(address)
    show(other)
    assert ask_for(other, "what is it?")


def test_what_is_written_is_text_and_no_code(visit, embedded):
    tab = visit(embedded[0])
    show(tab)
    question = 'is <img src=x onerror="window.run=1"> ${window.run=2} {{window.run}} <script>window.run=3</script> a 3?'
    ask_for(tab, question)
    assert tab.inner_text("#fb-said .fb-question") == question
    assert tab.evaluate("() => window.run") is None


def test_a_video_is_watched_and_its_frames_light_up(visit, tmp_path):
    write_foveated(tmp_path / "model")
    video = write_video(tmp_path / "clip.mp4", 3, 10)
    with served(str(tmp_path / "model")) as (address, _):
        tab = visit(address)
        show(tab, video)
        assert tab.locator("#fb-view img").count() == 3
        ask_for(tab, "what happens?")
        tab.locator("#fb-view .fb-picture").nth(1).hover()
        tab.wait_for_selector("#fb-view.fb-lit")
        assert len(lit(tab)) == 4  # frames of 2 x 2 patches
        assert min(lit(tab)) == 0
        tab.click("#fb-rests")
        tab.wait_for_selector("#fb-view .fb-effect")
        assert tab.locator("#fb-view .fb-effect").count() == 3
        show(tab, Path(EXAMPLE))
        ask_for(tab, "and here?")
        assert tab.locator("#fb-view img").count() == 8


def test_a_word_lights_up_in_all_frames_of_a_video(visit, wordy, tmp_path):
    tab = visit(wordy[0])
    show(tab, write_video(tmp_path / "clip.mp4", 3, 10))
    assert tab.locator("#fb-view img").count() == 3
    ask_for(tab, "what happens?")
    word(tab, "happens").hover()
    tab.wait_for_selector("#fb-view.fb-lit")
    assert len(lit(tab)) == 12  # four tiles a frame
    tab.click("#fb-rests")
    tab.wait_for_selector("#fb-view .fb-effect")
    assert tab.locator("#fb-view .fb-effect").count() == 15  # and a view of each frame as a whole


def test_several_turns_are_remembered_where_the_model_can(visit, wordy):
    tab = visit(wordy[0])
    show(tab)
    tab.get_by_text("Settings", exact=True).click()
    assert tab.is_checked("#fb-remember input")
    tab.locator("input[type=number]").first.fill("8")
    ask_for(tab, "first?")
    asked = []
    answer = wordy[1].answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wordy[1], "answer", lambda *given: asked.append(turn := answer(*given)) or turn)
        ask_for(tab, "second?", turns=2)
    assert "first?" in asked[0].prompt
    assert "second?" in asked[0].prompt
