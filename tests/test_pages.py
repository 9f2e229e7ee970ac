"""Generated pages of docs/ are current, and every public name and key has words of its own."""

import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from PIL import Image

import firebolt_vl
from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor

DOCS = Path(__file__).resolve().parents[1] / "docs"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


API, CONFIGURATION, ARCHITECTURE = script("api"), script("configuration"), script("architecture")
PUBLIC = [(package, name) for package in API.PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize("writer", [API, CONFIGURATION], ids=["api", "configuration"])
def test_page_is_what_the_script_writes(writer):
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run `make docs`"


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{package}.{name}" for package, name in PUBLIC])
def test_public_name_has_a_docstring(package, name):
    value = getattr(importlib.import_module(package), name)
    if isinstance(value, str):
        return
    assert inspect.cleandoc(value.__doc__ or "")
    assert f"\n### {name}\n" in API.page()


def test_every_key_has_a_meaning():
    assert CONFIGURATION.names_without_meaning() == []


def test_pages_hold_no_addresses_and_no_paths():
    for writer in (API, CONFIGURATION):
        for sign in (" at 0x", "<function", "<class", str(DOCS.parent)):
            assert sign not in writer.page()


def test_both_forms_of_docstring_are_read():
    class Columns:
        """Sizes.

        first, second    two of them,
                         on two lines
        third            one

        Not a key.
        """

    class Arguments:
        """Sizes.

        Args:
            first: one of them,
                on two lines.
            second: another: with a colon.

        Raises:
            ValueError: never.
        """

    both = "two of them, on two lines"
    assert CONFIGURATION.meanings(Columns) == {"first": both, "second": both, "third": "one"}
    assert CONFIGURATION.meanings(Arguments) == {
        "first": "one of them, on two lines.",
        "second": "another: with a colon.",
    }


def test_the_table_of_shapes_is_on_its_page():
    assert ARCHITECTURE.table() in (DOCS / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_is_drawn(tmp_path):
    ARCHITECTURE.draw(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn, Image.open(DOCS / "architecture.png") as kept:
        assert drawn.size == kept.size
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 50


def test_shapes_of_the_embedded_model_are_what_it_computes():
    folder = firebolt_vl.embedded_checkpoint()
    model = FireboltForConditionalGeneration.from_pretrained(folder)
    processor = FireboltProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "what digit is at the top left?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = Image.open(DOCS.parent / "examples" / "digits-1.png")
    inputs = processor(images=image, text=text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        pixels = {
            name: inputs[name] for name in ("pixel_values", "pixel_tiles", "tile_mask", "image_mask", "grid_boxes")
        }
        grids = model.model.get_grids(**pixels).features
        connector = model.model.connector
        state = connector.encode_grids(grids, grid_boxes=inputs["grid_boxes"])
        modulated, _, weights = connector.prefill(embedded, state=state, return_weights=True)
        decoded = model.model.language_model(inputs_embeds=modulated).last_hidden_state
        logits = model(**inputs).logits
    computed = (
        *(inputs["pixel_values"], inputs["pixel_tiles"], grids, state.tensors["grid.table"], inputs["input_ids"]),
        *(embedded, weights, modulated, decoded, logits),
    )
    assert [tuple(tensor.shape) for tensor in computed] == list(ARCHITECTURE.shapes(ARCHITECTURE.EMBEDDED).values())
