"""What transformers does not promise stands in model/compat, and is replaced only where it is what we know."""

import ast
import itertools
import logging
import re
from pathlib import Path

import pytest
import tiny_models
import torch
from numerics import assert_close
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, Lfm2MLP, Lfm2RMSNorm, Lfm2ShortConv
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead as PoolingHead

from firebolt_vl.model.compat import (
    CACHE,
    CACHE_NAMES,
    CompactRMSNorm,
    GrowingLayer,
    JoinedMLP,
    OneQueryPooling,
    SequencewiseAttention,
    StepwiseShortConv,
    extend,
    versions,
)
from firebolt_vl.model.firebolt.cache_firebolt import ConnectorCacheLayer

ROOT = Path(__file__).resolve().parents[3]
# Parts of transformers that have a page in its documentation, for those who write models, processors and trainers.
DOCUMENTED = {
    "transformers",
    "transformers.cache_utils",  # for the name Cache alone
    "transformers.configuration_utils",
    "transformers.image_processing_backends",
    "transformers.image_processing_utils",
    "transformers.image_utils",
    "transformers.integrations",  # its callbacks have pages
    "transformers.modeling_outputs",
    "transformers.processing_utils",
    "transformers.utils",
}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    """A line that an earlier test had is told again."""
    monkeypatch.setattr(versions, "_told", set())


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("firebolt_vl")]


def classes(model) -> set[type]:
    return {type(module) for module in model.modules()}


def test_the_versions_that_are_admitted_are_those_that_were_tested():
    admitted = re.search(r'"transformers>=([\d.]+),<([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    minors = [tuple(map(int, version.split("."))) for version in versions.TESTED]
    assert minors == sorted(minors)
    assert all(later == (first, second + 1) for (first, second), later in itertools.pairwise(minors))
    (first, second) = minors[-1]
    assert admitted.groups() == (versions.TESTED[0], f"{first}.{second + 1}")


def test_the_installed_version_is_replaced_in_all_its_parts(caplog):
    model = tiny_models.make_model()
    assert {StepwiseShortConv, SequencewiseAttention, JoinedMLP, CompactRMSNorm, OneQueryPooling} <= classes(model)
    cache = DynamicCache(config=model.config.text_config)
    extend(cache, ConnectorCacheLayer)
    assert GrowingLayer in {type(layer) for layer in cache.layers}
    assert lines(caplog) == []


def test_an_untested_version_gets_stock_modules_and_one_line(monkeypatch, caplog):
    monkeypatch.setattr(versions.transformers, "__version__", "5.99.1")
    model = tiny_models.make_model()
    assert {Lfm2ShortConv, Lfm2Attention, Lfm2MLP, Lfm2RMSNorm, PoolingHead} <= classes(model)
    cache = DynamicCache(config=model.config.text_config)
    extend(cache, ConnectorCacheLayer)
    assert GrowingLayer not in {type(layer) for layer in cache.layers}
    (line,) = lines(caplog)
    assert "5.99.1" in line
    assert ", ".join(versions.TESTED) in line


CHANGED = {
    "a new argument": lambda stock: lambda self, *args, window=None, **kwargs: stock(self, *args, **kwargs),
    "another name": lambda stock: lambda self, x, **kwargs: stock(self, x, **kwargs),
    "an argument less": lambda stock: lambda self: stock(self),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize(
    ("stock", "method", "ours"),
    [
        (Lfm2ShortConv, "forward", StepwiseShortConv),
        (Lfm2Attention, "forward", SequencewiseAttention),
        (Lfm2MLP, "forward", JoinedMLP),
        (Lfm2RMSNorm, "forward", CompactRMSNorm),
        (PoolingHead, "forward", OneQueryPooling),
    ],
)
def test_a_changed_signature_gives_the_stock_module_and_one_line(monkeypatch, caplog, stock, method, ours, change):
    monkeypatch.setattr(stock, method, CHANGED[change](getattr(stock, method)))
    models = tiny_models.make_model(), tiny_models.make_model()
    for model in models:
        assert ours not in classes(model)
        assert stock in classes(model)
    (line,) = lines(caplog)
    assert f"{stock.__name__}.{method}" in line


@pytest.mark.parametrize(
    "ours", [StepwiseShortConv, SequencewiseAttention, JoinedMLP, CompactRMSNorm, OneQueryPooling, GrowingLayer]
)
@torch.no_grad()
def test_a_changed_signature_gives_the_answer_of_transformers(monkeypatch, caplog, ours):
    """And not a wrong one: with the stock part the model is the same function."""
    (stock,) = ours.__bases__
    method = "update" if ours is GrowingLayer else "forward"
    inputs = {**tiny_models.make_text([5, 3]), **tiny_models.make_pixels(2)}
    wanted = tiny_models.make_model().generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    before = getattr(stock, method)
    monkeypatch.setattr(stock, method, lambda self, *args, scaling=None, **kwargs: before(self, *args, **kwargs))
    model = tiny_models.make_model()
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False), wanted)
    (line,) = lines(caplog)
    assert f"{stock.__name__}.{method}" in line


class TestNamesOfTheCache:
    """transformers renamed an argument; ours takes both names, in every version."""

    @pytest.mark.parametrize("name", CACHE_NAMES)
    @torch.no_grad()
    def test_either_is_taken(self, name):
        model, text = tiny_models.make_model(), tiny_models.make_text([6, 6])
        whole = model(**text).logits
        cache = DynamicCache(config=model.config.text_config)
        parts = [model(input_ids=part, **{name: cache}).logits for part in text["input_ids"].split([4, 1, 1], dim=1)]
        assert_close(torch.cat(parts, dim=1), whole, relative=1e-5)
        with pytest.raises(ValueError, match="cache and past_key_values are both given"):
            model(**text, **dict.fromkeys(CACHE_NAMES, cache))

    @pytest.mark.parametrize("name", CACHE_NAMES)
    def test_generate_takes_either(self, name):
        model, text = tiny_models.make_model(), tiny_models.make_text([6, 6])
        cache = DynamicCache(config=model.config.text_config)
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        found = model.generate(**text, **options, return_dict_in_generate=True, **{name: cache})
        assert found[CACHE] is cache
        assert torch.equal(found.sequences, model.generate(**text, **options))


def imported_from_transformers(folder: Path):
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "transformers":
                yield file, node.module, {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                yield from ((file, alias.name, set()) for alias in node.names if alias.name.startswith("transformers"))


@pytest.mark.parametrize("layer", ["model", "evaluate", "train", "bench", "firebolt_vl"])
def test_undocumented_parts_are_used_in_one_place(layer):
    inside = ROOT / "model" / "compat"
    for file, module, names in imported_from_transformers(ROOT / layer):
        if inside not in file.parents:
            told = f"{file.relative_to(ROOT)} imports {', '.join(names)} from {module}"
            assert module in DOCUMENTED, told
            assert module != "transformers.cache_utils" or names == {"Cache"}, told


def test_layers_of_a_cache_have_all_that_transformers_layers_have():
    """What a Cache asks of its layers, it asks of ours."""
    asked = {"get_max_length", "is_croppable", "reorder_cache", "batch_select_indices", "crop", "reset", "offload"}
    asked |= {"batch_repeat_interleave", "is_compileable", "is_sliding", "supports_early_init", "prefetch"}
    assert asked <= set(dir(DynamicLayer))
    of_keys = {"update", "lazy_initialization", "get_seq_length", "get_mask_sizes"}
    public = {name for name in dir(DynamicLayer) if not name.startswith("_")} - of_keys
    assert public <= set(dir(ConnectorCacheLayer()))


def test_the_advice_about_kernels_for_gpus_is_not_given_without_one(caplog):
    logger = logging.getLogger("transformers.integrations.hub_kernels")
    tiny_models.make_model()
    record = logger.makeRecord(logger.name, logging.WARNING, "", 0, "install `causal_conv1d` for speed", (), None)
    assert bool(logger.filter(record)) is torch.cuda.is_available()
