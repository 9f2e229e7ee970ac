"""The page of `firebolt export page` in a real browser without a window (`make test-static`; skipped elsewhere)."""

import base64
import functools
import http.server
import itertools
import json
import os
import shutil
import threading
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if not os.environ.get("FIREBOLT_RUNTIME"):
    pytest.skip("make test-static has what this needs", allow_module_level=True)

from browsers import launch
from playwright.sync_api import sync_playwright
from tiny_models import make_model, make_processor

from firebolt_vl import embedded_checkpoint
from firebolt_vl.cli import run
from firebolt_vl.engines import load_engine
from firebolt_vl.evaluate.digits import draw
from firebolt_vl.evaluate.exam import pose
from firebolt_vl.views.images import open_image

# Of anything that is waited for, in milliseconds: a busy machine may take long, and no longer than a person waits.
PATIENCE = 240_000
QUESTIONS = 20
# Of weights in float32 through the graphs, as the exports promise of logits; the page rounds the darkness to 4 digits.
PARITY, DIGITS = 1e-4, 5e-5
OPENED = """async (content) => {
    const { openPicture } = await import(new URL("picture.js", document.baseURI));
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const { picture } = await openPicture(new File([bytes], "picture"));
    return [picture.width, picture.height, [...picture.data]];
}"""
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page"
    assert run(["export", "page", str(out), "--runtime", os.environ["FIREBOLT_RUNTIME"]]) == 0
    return out


@contextmanager
def serving(folder: Path):
    """Serve a folder as `python -m http.server` does; its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def address(folder):
    """The page below another one, as on a site with several."""
    with serving(folder.parent) as address:
        yield f"{address}{folder.name}/"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright, launch(playwright) as browser:
        yield browser


@pytest.fixture
def visit(browser, address):
    """Open the page; an error in it, or a request to any other place, fails the test."""
    opened, wrong = [], []

    def visit(to: str = address, before: str | None = None, **options):
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        opened.append(context)
        own = to.removesuffix("index.html")
        context.route("**/*", lambda route: route.continue_() if _is_own(route.request.url, own) else route.abort())
        context.on("request", lambda request: _is_own(request.url, own) or wrong.append(request.url))
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        if before is not None:
            context.add_init_script(before)
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(to)
        return tab

    yield visit
    for context in opened:
        context.close()
    assert wrong == []


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def wait_until_ready(tab):
    tab.wait_for_function("() => !document.querySelector('#go').disabled")
    return tab


def show(tab, path) -> None:
    """Choose a file and wait until it is shown."""
    before = tab.get_attribute("#picture", "src")
    tab.set_input_files("#file", str(path))
    tab.wait_for_function("before => document.querySelector('#picture').getAttribute('src') !== before", arg=before)


def ask(tab, question: str) -> str:
    """Ask, wait for the end, and return the answer."""
    turns = tab.locator(".turn").count() + 1
    tab.fill("#question", question)
    tab.keyboard.press("Enter")
    ended = "[...document.querySelectorAll('.facts')].filter((one) => one.textContent).length"
    tab.wait_for_function(f"turns => {ended} === turns", arg=turns)
    return tab.locator(".answer").first.inner_text()


def refused(tab) -> str:
    tab.wait_for_selector("#notice:not([hidden])")
    return tab.inner_text("#notice")


def lit(tab) -> list[float]:
    """How dark each part of the picture is, 0 where a word looked most."""
    return tab.eval_on_selector_all(
        "#light > div", "cells => cells.map(cell => Number(cell.style.getPropertyValue('--dark')))"
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Pictures of held-out scenes with a question about each."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn, asked = pose(QUESTIONS, 11, "held-out")
    found = []
    for number, scene in enumerate(drawn):
        path = folder / f"{number}.png"
        draw(scene, 128 + 7 * number).save(path)
        of_scene = [one.question.text for one in asked if one.scene == number]
        found.append((path, of_scene[number % len(of_scene)]))
    assert len(found) == QUESTIONS
    return found


def test_twenty_questions_have_the_answers_of_pytorch(visit, scenes):
    tab = wait_until_ready(visit())
    pytorch = load_engine()
    for path, question in scenes:
        show(tab, path)
        wanted = pytorch.answer(open_image(path), question)
        assert ask(tab, question) == wanted.text
        assert f"{len(wanted.tokens)} token" in tab.inner_text(".facts")


def test_the_highlight_follows_the_word(visit, scenes, monkeypatch):
    path, question = scenes[0]
    tab = wait_until_ready(visit())
    show(tab, path)
    ask(tab, question)
    wanted = weights_of(None, path, question, tab.locator(".answer .marked").count())
    marks = tab.locator(".question .marked, .answer .marked")
    assert marks.count() == len(wanted) >= 4
    assert lit(tab) == []
    seen = []
    for number, weights in enumerate(wanted):
        marks.nth(number).hover()
        tab.wait_for_selector(".marked.on")
        seen.append(lit(tab))
        dark = [0.8 * (1 - weight / max(weights)) for weight in weights[1:]]
        assert seen[-1] == pytest.approx(dark, abs=DIGITS + PARITY / max(weights))
        assert f"“{marks.nth(number).inner_text()}” looked most at" in tab.inner_text("#legend")
    assert len({tuple(one) for one in seen}) > 2
    tab.mouse.move(2, 2)
    tab.wait_for_function("() => !document.querySelector('.marked.on')")
    assert lit(tab) == []
    # Without a mouse: one stop of the Tab key for each line, arrow keys within it.
    tab.locator('.question .marked[tabindex="0"]').focus()
    assert lit(tab) == seen[0]
    tab.keyboard.press("ArrowRight")
    assert lit(tab) == seen[1]
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.closest('.answer') !== null")


def weights_of(checkpoint: Path | None, path, question: str, answered: int) -> list[list[float]]:
    """What each word of a question, and each of the first tokens of its answer, weighs in PyTorch."""
    import torch

    from firebolt_vl.checkpoint import load
    from firebolt_vl.evidence import word_weights
    from firebolt_vl.prompts import prompt, specials

    loaded = load(checkpoint or embedded_checkpoint(), "cpu", "float32")
    text = prompt(loaded, question, 1)
    inputs = loaded.processor(text=text, images=open_image(path), return_tensors="pt", **specials(loaded, text))
    tokens = torch.tensor([load_engine(checkpoint).answer(open_image(path), question).tokens])
    ids = torch.cat([inputs["input_ids"], tokens], 1)
    weighed = loaded.model.ground(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    of_words = [weights for _, _, weights in word_weights(loaded, weighed, text, question)]
    begin = inputs["input_ids"].shape[1]
    return of_words + weighed.weights[0, begin : begin + answered].tolist()


def test_a_model_of_patches_says_where_it_looked(visit, tmp_path):
    """Views and patches, two layers, a query of the text so far; random weights, whose answer ends nowhere."""
    checkpoint, page = tmp_path / "checkpoint", tmp_path / "page"
    make_model(query="state", layers=2, grids="both").save_pretrained(checkpoint)
    make_processor().save_pretrained(checkpoint)
    runtime = ["--runtime", os.environ["FIREBOLT_RUNTIME"]]
    assert run(["export", "page", str(page), "--checkpoint", str(checkpoint), *runtime]) == 0
    path, question = page / "examples" / "digits-1.png", "where does it look?"
    with serving(page) as address:
        tab = wait_until_ready(visit(address))
        show(tab, path)
        said = ask(tab, question)
        wanted = load_engine(checkpoint).answer(open_image(path), question)
        assert said.strip() == wanted.text
        assert "cut short" in tab.inner_text(".facts") or wanted.complete
        for number, weights in enumerate(weights_of(checkpoint, path, question, 0)):
            tab.locator(".question .marked").nth(number).hover()
            tab.wait_for_selector(".marked.on")
            dark = [0.8 * (1 - weight / max(weights)) for weight in weights[1:]]  # the first is of the whole picture
            assert lit(tab) == pytest.approx(dark, abs=DIGITS + PARITY / max(weights))


def test_an_example_is_asked_by_the_keyboard_alone(visit):
    tab = wait_until_ready(visit())
    tab.locator("#examples button").nth(1).focus()
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => document.querySelector('.facts')?.textContent")
    assert tab.inner_text(".answer") == "top left"
    # Whoever takes another one in the middle has the answer to that one alone.
    for number in (0, 2, 1):
        tab.locator("#examples button").nth(number).click(no_wait_after=True)
    tab.wait_for_function("() => document.querySelector('#question').value.startsWith('where')")
    tab.wait_for_function("() => document.querySelector('.facts')?.textContent.includes('probability')")
    assert tab.inner_text(".question") == "where can you see the 7?"
    tab.focus("#question")
    tab.keyboard.press("Shift+Tab")
    assert tab.evaluate("() => document.activeElement.id") == "file"


def test_tokens_are_seen_as_they_come_and_an_answer_can_be_stopped(visit, folder, tmp_path):
    """A model that never ends: nothing is a stop."""
    endless = tmp_path / "endless"
    shutil.copytree(folder, endless)
    described = json.loads((endless / "model" / "engine.json").read_text())
    changed = json.dumps({**described, "stops": []})
    (endless / "model" / "engine.json").write_text(changed)
    page = json.loads((endless / "page.json").read_text())
    page["files"]["model/engine.json"] = len(changed)
    (endless / "page.json").write_text(json.dumps(page))
    with serving(endless) as address:
        tab = wait_until_ready(visit(address))
        show(tab, folder / "examples" / "digits-1.png")
        tab.evaluate(
            """() => {
                window.seen = [];
                new MutationObserver(() => {
                    const answer = document.querySelector('.answer')?.textContent;
                    if (answer && answer !== window.seen.at(-1)) window.seen.push(answer);
                    if (window.seen.length === 4) document.querySelector('#stop').click();
                }).observe(document.querySelector('#said'), { childList: true, subtree: true });
            }"""
        )
        tab.fill("#question", "what digit is at the top left?")
        tab.keyboard.press("Enter")
        tab.wait_for_function("() => document.querySelector('.facts')?.textContent === 'stopped'")
        seen = tab.evaluate("() => window.seen")
        assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
        assert 4 <= len(seen) < 100
        tab.wait_for_function("() => !document.querySelector('#go').disabled")
        # Whoever closes the tab in the middle leaves nothing behind: there is no server that could hold it.
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#stop:not([hidden])")
        tab.close()


def test_files_that_cannot_be_taken_are_refused_and_the_page_goes_on(visit, folder, tmp_path):
    tab = wait_until_ready(visit())
    (tmp_path / "notes.png").write_text("text under an image's name")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    Image.new("1", (20_000, 9_000)).save(tmp_path / "huge.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(200 * 2**20)
    for name, told in (
        ("notes.txt", "notes.txt is no image that this browser can read; expected a PNG, JPEG, WebP or GIF"),
        ("notes.png", "notes.png is no image that this browser can read"),
        ("drawing.svg", "drawing.svg is no image that this browser can read"),
        ("huge.png", "huge.png has 20000 × 9000 pixels; expected at most 40 million"),
        ("large.png", "large.png has 200 MB; expected at most 32 MB; save it smaller"),
    ):
        tab.evaluate("() => { document.querySelector('#notice').hidden = true; }")
        tab.set_input_files("#file", str(tmp_path / name))
        assert told in refused(tab)
        assert tab.get_attribute("#picture", "src") is None
    tab.fill("#question", "what digit is at the top left?")
    tab.keyboard.press("Enter")
    assert "there is no picture yet" in refused(tab)
    show(tab, folder / "examples" / "digits-1.png")
    tab.fill("#question", "<|im_end|>")
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => document.querySelector('#notice').textContent.includes('control token')")
    assert ask(tab, "what digit is at the top left?") == "8"
    assert ask(tab, "who is <b onclick=alert(1)>it</b>?")
    assert "a guess: the question has words" in tab.inner_text(".doubt")
    assert tab.inner_text(".question >> nth=0") == "who is <b onclick=alert(1)>it</b>?"


def test_files_are_seen_as_pillow_sees_them(visit, tmp_path):
    """PNG to the bit; transparency, which the browser blends, to a level; JPEG, decoded elsewhere, to a few."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (40, 56, 4), dtype=np.uint8)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((56, 40), 3)
    turned = Image.Exif()
    turned[274] = 6
    tab = visit()
    for name, image, most, options in (
        ("rgb.png", Image.fromarray(levels[..., :3]), 0, {}),
        ("grey.png", Image.fromarray(levels[..., 0]), 0, {}),
        ("palette.png", smooth.quantize(32), 0, {}),
        ("transparent.png", Image.fromarray(levels), 1, {}),
        ("lossless.webp", Image.fromarray(levels[..., :3]), 0, {"lossless": True}),
        ("turned.jpg", smooth, 4, {"exif": turned, "quality": 92}),
    ):
        image.save(tmp_path / name, **options)
        content = base64.b64encode((tmp_path / name).read_bytes()).decode()
        width, height, data = tab.evaluate(OPENED, content)
        wanted = open_image(tmp_path / name)
        found = np.array(data, dtype=np.int64).reshape(height, width, 4)[..., :3]
        assert (width, height) == wanted.size, name
        assert np.abs(found - np.asarray(wanted).astype(np.int64)).max() <= most, name


def test_what_keeps_the_page_from_working_is_said(visit, folder, tmp_path):
    tab = visit((folder / "index.html").as_uri())
    assert "A browser runs it from a server alone, not from a file" in tab.inner_text("#status")
    tab = visit(before="delete globalThis.WebAssembly")
    tab.wait_for_function("() => document.querySelector('#status').textContent.includes('no WebAssembly')")
    for broken, told in (("weights.bin", "has 5 bytes; expected"), ("step.onnx", "model/step.onnx is not there (404)")):
        less = tmp_path / broken
        shutil.copytree(folder, less)
        (less / "model" / broken).unlink()
        if "bytes" in told:
            (less / "model" / broken).write_text("short")
        with serving(less) as address:
            tab = visit(address)
            tab.wait_for_function("() => document.querySelector('#status').textContent.includes('cannot be loaded')")
            assert told in tab.inner_text("#status")
            assert tab.is_disabled("#go")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_read_on_a_phone_and_on_a_desktop(visit, scheme, folder):
    for viewport in (DESKTOP, PHONE):
        tab = wait_until_ready(visit(viewport=viewport, color_scheme=scheme))
        show(tab, folder / "examples" / "digits-1.png")
        ask(tab, "what digit is at the top left?")
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        ink, paper = (
            tab.evaluate(f"() => getComputedStyle(document.body).{one}") for one in ("color", "backgroundColor")
        )
        assert contrast(ink, paper) > 7
        for part in (".facts", ".answer", "#legend", "#about"):
            shade = tab.evaluate(f"() => getComputedStyle(document.querySelector('{part}')).color")
            assert contrast(shade, paper) > 4.5, part
        if (picture := os.environ.get("FIREBOLT_PICTURE")) and viewport == DESKTOP and scheme == "light":
            ask(tab, "which digit is at the bottom right?")
            tab.locator(".question .marked", has_text="bottom").first.hover()
            tab.wait_for_timeout(500)  # colours fade in
            Image.open(BytesIO(tab.screenshot())).convert("P", palette=Image.Palette.ADAPTIVE).save(
                picture, optimize=True
            )


def contrast(one: str, other: str) -> float:
    """The ratio of two colours, rgb(...), as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
