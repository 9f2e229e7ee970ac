"""firebolt export page: what is written, and its script beside Python (in node, where there is one)."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
import urllib.error
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
from commands import assert_refused
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from firebolt_vl import embedded_checkpoint
from firebolt_vl.browser import page as pages
from firebolt_vl.browser import runtime
from firebolt_vl.browser.tokens import check_tokenizer
from firebolt_vl.engines.description import FILE, TOKENIZER, Description, read_description
from firebolt_vl.errors import Failure, Misuse
from firebolt_vl.evaluate.familiar import read_familiar, statistics
from firebolt_vl.evidence import word_spans
from firebolt_vl.train.screens.tokenizer import make_tokenizer
from firebolt_vl.views.cutting import cut_views, stacked
from firebolt_vl.views.tiling import native_grid

TINY = embedded_checkpoint()
DESCRIBED = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
FAMILIAR = read_familiar(TINY)
SIZES = [(64, 64), (37, 53), (300, 41), (1, 9), (640, 480)]
FILTERS = range(6)
OLDEST_NODE = 18
PLAIN = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
SETTINGS = [
    {**PLAIN, "tiling": "native", "size": 64, "tile_size": 32, "max_tiles": 4, "resample": 2},
    {**PLAIN, "tiling": "native", "size": 48, "tile_size": 16, "max_tiles": 9, "resample": 3},
    {**PLAIN, "tiling": "compatible", "size": 64, "tile_size": 30, "tile_overlap": 2, "resample": 2},
    {**PLAIN, "tiling": "compatible", "size": 32, "tile_size": 48, "resample": 1, "do_resize": False},
]
COMMON = {"tile_overlap": 0, "max_tiles": 4, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
TEXTS = [
    "what digit is at the top left?",
    "<|im_start|>user\n  what's  there?<|im_end|>\n<|im_start|>assistant\n",
    "",
    " ",
    "it's I'LL we've 12 345a\t\n\r\n  x  \n",
    "Größe, 日本語 и emoji 🙂👨‍👩‍👧 ½ ² é",
    "a\u0085b\ufeffc\u2028d\u00a0e\u3000 f\x1cg\x1fh\x0bi",
    "<|im_start|><|im_start|>x<|im_e<|pad|>",
]


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(1000 * width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def job(what: str, image: Image.Image, **more) -> dict:
    given = {"width": image.width, "height": image.height, "data": base64.b64encode(image.tobytes()).decode()}
    return {"do": what, "picture": given, **more}


def in_this_order(size: tuple[int, int], to: tuple[int, int]) -> bool:
    """Tell whether the Pillow that is here goes in the page's order: 13 does, older ones always go across first."""
    fewer = size[1] - to[1]
    return int(PIL.__version__.partition(".")[0]) >= 13 or not (fewer > 0 and fewer > 2 * (size[0] - to[0]))


def seen_in_this_order(size: tuple[int, int], settings: dict) -> bool:
    width, height = size
    side, tile = settings["size"], settings["tile_size"]
    rows, columns = native_grid(height, width, tile, settings["max_tiles"])
    return in_this_order(size, (side, side)) and in_this_order(size, (columns * tile, rows * tile))


def numbers(text: str, dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture(scope="module")
def ask_node(tmp_path_factory):
    """Run jobs of support/page_in_node.mjs in one process of node."""
    node = shutil.which("node")
    if node is None or int(subprocess.check_output([node, "--version"], text=True)[1:].partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node {OLDEST_NODE} or newer is not here")
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(pages.SITE, folder / "site")
    (folder / "site" / "package.json").write_text('{"type": "module"}')
    script = Path(__file__).parents[1] / "support" / "page_in_node.mjs"

    def ask(*jobs: dict, tokenizer: dict = DESCRIBED) -> list:
        given, found = folder / "jobs.json", folder / "results.json"
        given.write_text(json.dumps({"tokenizer": tokenizer, "jobs": jobs}), encoding="utf-8")
        done = subprocess.run(
            [node, script, folder / "site", given, found], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(found.read_text(encoding="utf-8"))

    return ask


def test_the_page_resizes_as_pillow_does(ask_node):
    """To the bit: every filter, smaller and larger, along one axis and both."""
    sizes = [(size, to) for size in SIZES[:-1] for to in SIZES[:-1]] + [((48, 75), (40, 58))]
    cases = [(picture(*size), to, how) for size, to in sizes if in_this_order(size, to) for how in FILTERS]
    cases.append((picture(320, 240), (64, 64), 2))
    found = ask_node(*(job("resize", image, width=to[0], height=to[1], resample=how) for image, to, how in cases))
    for (image, to, how), data in zip(cases, found, strict=True):
        wanted = np.asarray(image.resize(to, how)).reshape(-1)
        assert np.array_equal(numbers(data, np.uint8), wanted), (image.size, to, how)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: f"{one['tiling']}-{one['size']}-{one['tile_size']}")
def test_the_page_sees_the_pixels_that_the_model_sees_in_python(settings, ask_node):
    """To the bit, boxes as well."""
    settings = {**COMMON, **settings}
    images = [picture(*size) for size in SIZES if seen_in_this_order(size, settings)]
    for image, found in zip(
        images, ask_node(*(job("views", image, settings=settings) for image in images)), strict=True
    ):
        wanted = stacked([[cut_views(image, settings["size"], settings)]], settings["size"], settings["tile_size"])
        for name, told in found.items():
            assert tuple(told["dims"]) == wanted[name].shape
            assert np.array_equal(numbers(told["data"], np.float32).reshape(told["dims"]), wanted[name]), name


def test_the_page_chooses_the_tiles_that_python_does(ask_node):
    sizes = [
        (h, w, tile, most)
        for h in range(1, 400, 23)
        for w in (8, 48, 80, 333)
        for tile in (16, 32)
        for most in (4, 7, 12)
    ]
    (found,) = ask_node({"do": "grids", "sizes": sizes})
    assert [tuple(one) for one in found] == [native_grid(*size) for size in sizes]


def described(tokenizer) -> dict:
    """What the tokenizer.json of a tokenizer of transformers says."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def framed() -> dict:
    """The embedded tokenizer with tokens of its own around a text."""
    tokenizer = Tokenizer.from_str(json.dumps(DESCRIBED))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<|startoftext|>", "<|im_end|>")]
    tokenizer.post_processor = TemplateProcessing(single="<|startoftext|> $A <|im_end|>", special_tokens=ends)
    return json.loads(tokenizer.to_str())


@pytest.mark.parametrize(
    "make", [lambda: DESCRIBED, framed, lambda: described(make_tokenizer())], ids=["", "framed", "whole"]
)
def test_the_page_gives_the_tokens_that_python_does(make, ask_node):
    """Tokens, what of the text each is made of, and the text that comes back."""
    contents = make()
    check_tokenizer(contents)
    tokenizer = Tokenizer.from_str(json.dumps(contents))
    # Letters that were added to Unicode lately are known to one and not to the other.
    old = [chr(code) for code in range(0x20, 0x3000) if unicodedata.ucd_3_2_0.category(chr(code)) not in ("Cn", "Cs")]
    texts = [*TEXTS, *("a" + "1 x".join(old[n : n + 64]) for n in range(0, len(old), 64))]
    found, whole, spoken = ask_node(
        {"do": "encode", "texts": texts, "special": False},
        {"do": "encode", "texts": texts, "special": True},
        {"do": "decode", "rows": [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]},
        tokenizer=contents,
    )
    for text, tokens, around, said in zip(texts, found, whole, spoken, strict=True):
        wanted = tokenizer.encode(text, add_special_tokens=False)
        assert [id for id, _, _ in tokens] == wanted.ids, text
        assert [id for id, _, _ in around] == tokenizer.encode(text, add_special_tokens=True).ids
        assert said == tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=True)
        if text.isascii():
            # In a byte-level tokenizer spans leave a space before a word out, or not, as `trim_offsets` says.
            assert [(end, text[start:end].strip()) for _, start, end in tokens] == [
                (end, text[start:end].strip()) for start, end in wanted.offsets
            ]


def test_the_page_finds_words_and_doubts_as_python_does(ask_node):
    texts = [*TEXTS, "how many 3s?", "where, is «the» 7 …", "a photo_of it", "WHICH digit?", "the", "寿司とthe 7"]
    images = [picture(80, 60), Image.open(Path(__file__).parents[2] / "examples" / "digits-1.png").convert("RGB")]
    described = json.loads((TINY / "familiar.json").read_text(encoding="utf-8"))
    words, doubts, with_names, *seen = ask_node(
        {"do": "words", "texts": texts},
        {"do": "doubts", "texts": texts, "familiar": described},
        {"do": "doubts", "texts": texts, "familiar": {**described, "names": True}},
        *(job("statistics", image, familiar=described) for image in images),
    )
    assert [[tuple(span) for span in spans] for spans in words] == [in_utf16(text) for text in texts]
    assert doubts == [len(FAMILIAR.doubts_of_question(text)) for text in texts]
    assert with_names == [len(replace(FAMILIAR, names=True).doubts_of_question(text)) for text in texts]
    for image, found in zip(images, seen, strict=True):
        assert found.pop("doubts") == len(FAMILIAR.doubts_of_image(image))
        assert found == statistics(image)


def in_utf16(text: str) -> list[tuple[int, int]]:
    """Words of a text, in the units that JavaScript counts in."""
    units = lambda part: len(part.encode("utf-16-le")) // 2  # noqa: E731
    return [(units(text[:start]), units(text[:end])) for start, end in word_spans(text)]


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            told = tarfile.TarInfo(f"package/dist/{name}")
            told.size = len(content)
            archive.addfile(told, BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def packed(monkeypatch) -> dict[str, bytes]:
    """A runtime of two small files, whose digests are those that are expected."""
    files = {name: f"{name}, small".encode() for name in runtime.FILES}
    digests = {name: (ours, hashlib.sha256(files[name]).hexdigest()) for name, (ours, _) in runtime.FILES.items()}
    monkeypatch.setattr(runtime, "FILES", digests)
    return files


def put(folder: Path, copy=None) -> list[str]:
    said = []
    runtime.put_runtime(folder, None if copy is None else str(copy), said.append)
    assert sorted(file.name for file in folder.iterdir()) == ["onnxruntime.js", "onnxruntime.wasm"]
    return said


def test_the_runtime_comes_from_any_copy(packed, tmp_path):
    (tmp_path / "archive.tgz").write_bytes(archive_of(packed))
    assert put(tmp_path / "runtime", tmp_path / "archive.tgz") == []
    (tmp_path / "dist").mkdir()
    for name, content in packed.items():
        (tmp_path / "dist" / name).write_bytes(content)
    put(tmp_path / "of-a-package", tmp_path)
    put(tmp_path / "of-its-dist", tmp_path / "dist")
    shutil.rmtree(tmp_path / "dist")
    put(tmp_path / "of-a-page", tmp_path)


def test_another_runtime_is_refused(packed, tmp_path):
    damaged = {**packed, "ort-wasm-simd-threaded.wasm": b"another"}
    (tmp_path / "other.tgz").write_bytes(archive_of(damaged))
    (tmp_path / "less.tgz").write_bytes(archive_of({"ort.min.js": b""}))
    (tmp_path / "cut.tgz").write_bytes(archive_of(packed)[:-30])
    (tmp_path / "none.tgz").write_text("text")
    for name, told in (
        ("other.tgz", "ort-wasm-simd-threaded.wasm is of another version, or damaged"),
        ("less.tgz", "lacks ort.wasm.bundle.min.mjs"),
        ("cut.tgz", "lacks ort"),
        ("none.tgz", "lacks ort"),
        ("nowhere", "which does not exist; name npm's archive"),
    ):
        with pytest.raises(Misuse, match=told):
            runtime.put_runtime(tmp_path / f"for-{name}", str(tmp_path / name), print)


def test_what_is_fetched_is_said_and_a_missing_network_is_told(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.urllib.request, "urlopen", lambda address, timeout: BytesIO(archive_of(packed)))
    (said,) = put(tmp_path / "fetched")
    assert runtime.ADDRESS in said
    assert "--runtime takes a local copy" in said

    def refuse(address, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(runtime.urllib.request, "urlopen", refuse)
    with pytest.raises(Failure, match=r"cannot be fetched \(.*no network.*\); where there is a network: npm pack onnx"):
        runtime.put_runtime(tmp_path / "nothing", None, print)


def test_a_page_needs_a_tokenizer_that_its_script_reads():
    check_tokenizer(DESCRIBED)
    for changed, told in (
        ({"model": {**DESCRIBED["model"], "type": "Unigram"}}, "model.type 'Unigram'; expected 'BPE'"),
        ({"model": {**DESCRIBED["model"], "byte_fallback": True}}, "model.byte_fallback True; expected False"),
        ({"normalizer": {"type": "NFC"}}, "normalizer {'type': 'NFC'}; expected None"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer.type 'Metaspace'; expected 'ByteLevel'"),
        ({"decoder": None}, "decoder.type None; expected 'ByteLevel'"),
        ({"model": {**DESCRIBED["model"], "vocab": {"a": 0}}}, "bytes without a token 255; expected 0"),
    ):
        with pytest.raises(Failure, match=r"tokenizer\.json has ") as refused:
            check_tokenizer({**DESCRIBED, **changed})
        assert told in str(refused.value)


@pytest.fixture
def written(tmp_path) -> Path:
    """A page around graphs that are none: its files, and what it says of them."""
    page = tmp_path / "page"
    for folder, files in (
        ("model", ("grids.onnx", "prompt.onnx", "step.onnx", "weights.bin")),
        ("runtime", ("onnxruntime.wasm",)),
    ):
        (page / folder).mkdir(parents=True)
        for file in files:
            (page / folder / file).write_text(file)
    for file in ("tokenizer.json", "familiar.json"):
        shutil.copy(TINY / file, page / "model")
    graphs = {part: f"{part}.onnx" for part in ("grids", "prompt", "step")}
    described = Description("onnx", graphs, {}, {}, [], [], [], 8, {})
    (page / "model" / FILE).write_text(described.to_json())
    pages.write_site(page, "tiny", read_description(page / "model"))
    return page


def test_the_page_names_its_own_files_and_nothing_outside(written):
    told = json.loads((written / "page.json").read_text(encoding="utf-8"))
    assert {f"model/{name}" for name in (FILE, TOKENIZER, "weights.bin", "step.onnx")} < set(told["files"])
    assert all((written / name).stat().st_size == size for name, size in told["files"].items())
    assert all((written / one["picture"]).is_file() for one in told["examples"])
    assert told["familiar"]["knows"] in (TINY / "familiar.json").read_text(encoding="utf-8")
    html = (written / "index.html").read_text(encoding="utf-8")
    assert "default-src 'self'" in html
    for file in [written / "index.html", *written.glob("*.js"), *written.glob("*.css")]:
        addresses = re.findall(r"""\w+://[^\s"'<)]*|["'(]//""", file.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://localhost:8000"}, file.name
    licences = (written / "LICENSES.txt").read_text(encoding="utf-8")
    assert f"ONNX Runtime Web {runtime.VERSION}" in licences
    assert "MIT License" in licences


def test_examples_are_those_that_the_model_knows(written, tmp_path):
    def asked(known) -> list[str]:
        page = tmp_path / "other"
        shutil.rmtree(page, ignore_errors=True)
        for folder in ("model", "runtime"):
            shutil.copytree(written / folder, page / folder)
        (page / "model" / "familiar.json").unlink()
        if known is not None:
            known.write(page / "model")
        pages.write_site(page, "other", read_description(page / "model"))
        return [one["question"] for one in json.loads((page / "page.json").read_text(encoding="utf-8"))["examples"]]

    assert asked(FAMILIAR) == [question for _, question in pages.ASKED]
    assert asked(None) == [pages.ASKED_OF_ANY] * len(pages.ASKED)
    assert asked(replace(FAMILIAR, things=["ticket"])) == []


def test_a_model_without_room_in_a_browser_is_refused(written, monkeypatch):
    monkeypatch.setattr(pages, "MOST_WEIGHTS", 4)
    with pytest.raises(Failure, match="GB of weights; expected at most"):
        pages.write_site(written, "tiny", read_description(written / "model"))


def test_the_command_refuses_what_it_cannot_write(firebolt, tmp_path):
    assert_refused(firebolt("export", "onnx", "out", "--runtime", "x.tgz"), 2, "--runtime is x.tgz with onnx")
    (tmp_path / "x.tgz").write_text("text")
    assert_refused(firebolt("export", "page", "out", "--runtime", "x.tgz"), 2, "--runtime is x.tgz, which lacks ort")
    assert not (tmp_path / "out").exists()
