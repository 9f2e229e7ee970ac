"""Models whose weights accelerate keeps elsewhere: in the host's memory, on disk, by hand or by a device map."""

import accelerate
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from foveated import make_foveated, make_frames
from numerics import assert_close
from packaging.version import Version
from tiny_models import make_model, make_pixels, make_text

from firebolt_vl.model import FireboltForConditionalGeneration, FoveatedVLM

KINDS = [
    {"ssm": "s4"},
    {"ssm": "s4", "kernel_taps": 4},
    {"ssm": "s4d", "fusion": "concat"},
    {"ssm": "mamba", "fusion": "pool"},
    {"ssm": "liquid"},
    {"query": "state", "layers": 2},
    {"connector": "prepend"},
    {"connector": "cross_attend"},
]
CPU = torch.device("cpu")


def in_memory(model, cls, folder):
    return cpu_offload(model, CPU)


def on_disk(model, cls, folder):
    disk_offload(model, str(folder / "weights"), CPU)
    return model


def by_a_map(model, cls, folder):
    """All on disk but the parameters that no module below the model has."""
    if Version(accelerate.__version__) < Version("1.15"):
        pytest.skip("accelerate 1.10 refuses models that are all on disk, and reads a bias where a weight is")
    model.save_pretrained(folder)
    parts = {name: "disk" for name, _ in model.named_children()}
    if "model" in parts:
        parts = {**{f"model.{name}": "disk" for name, _ in model.model.named_children()}, "lm_head": "disk"}
    parts |= {name: "cpu" for name, _ in model.named_parameters(recurse=False)}  # accelerate knows no other way
    return cls.from_pretrained(folder, device_map=parts, offload_folder=str(folder / "weights"))


PAIRS = [*((in_memory, keys) for keys in KINDS), (on_disk, KINDS[0]), (by_a_map, KINDS[0]), (by_a_map, KINDS[3])]
NAMED = {"ids": lambda value: getattr(value, "__name__", str(value))}


def answers(model, **inputs):
    settings = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**inputs, **settings).logits)


@pytest.mark.parametrize(("offload", "keys"), PAIRS, **NAMED)
@torch.no_grad()
def test_firebolt_answers_as_with_its_weights_in_place(offload, keys, tmp_path):
    model = make_model(**keys)
    inputs = {**make_text([9, 5]), **make_pixels(2)}
    wanted = [model(**inputs).logits, answers(model, **inputs)]
    method = "weights" if "connector" not in keys else "occlusion"
    grounded = model.ground(**inputs, method=method, max_new_tokens=2)
    away = offload(model, FireboltForConditionalGeneration, tmp_path).eval()
    assert any(parameter.is_meta for parameter in away.parameters())
    for _ in range(2):
        for found, expected in zip([away(**inputs).logits, answers(away, **inputs)], wanted):
            assert_close(found, expected, relative=1e-4)
    again = away.ground(**inputs, method=method, max_new_tokens=2)
    for found, expected in ((again.weights, grounded.weights), (again.effects, grounded.effects)):
        assert (found is None) == (expected is None)
        if found is not None:
            assert_close(found, expected, relative=1e-3)


@pytest.mark.parametrize(
    ("offload", "mode"), [(in_memory, "coarse_only"), (on_disk, "coarse_fine"), (by_a_map, "autoregressive")], **NAMED
)
@torch.no_grad()
def test_the_foveated_model_answers_as_with_its_weights_in_place(offload, mode, tmp_path):
    model = make_foveated(mode=mode)
    frames = make_frames([3, 1])
    inputs = {**make_text([6, 4]), **frames}
    wanted = [model(**inputs).logits, answers(model, **inputs), model.watch(**frames)[0].tokens]
    away = offload(model, FoveatedVLM, tmp_path).eval()
    assert away.dino_to_llm.weight.is_meta
    for _ in range(2):
        results = [away(**inputs).logits, answers(away, **inputs), away.watch(**frames)[0].tokens]
        for found, expected in zip(results, wanted):
            assert_close(found, expected, relative=1e-4)
