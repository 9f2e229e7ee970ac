"""CrossModalModulator.from_original: the original's layer, to rounding, from its own parameters."""

import functools

import golden
import pytest
import torch
from numerics import assert_close, assert_within_budget, largest

from firebolt_vl.cmm import CrossModalModulator
from firebolt_vl.cmm.original import renamed

FILES = golden.names("cmm_upstream_")
CASES = [(name, case) for name in FILES for case in golden.case_names(name)]
FILE = pytest.mark.parametrize("name", FILES)
UNMASKED = pytest.mark.parametrize(("name", "case"), [(name, case) for name, case in CASES if case != "g13_masked"])
MASKED = pytest.mark.parametrize("name", [name for name, case in CASES if case == "g13_masked"])


def build(name, state_dict=None, **changes):
    vectors = golden.load(name)
    dims, ssm = vectors.metadata["dims"], vectors.metadata["ssm"]
    arguments = {"heads": dims["heads"], "head_dim": dims["head_dim"], "top_k": vectors.metadata["topk"], "ssm": ssm}
    state_dict = vectors.under("param") if state_dict is None else state_dict
    return CrossModalModulator.from_original(state_dict, **(arguments | changes)).eval()


def cast(state_dict, dtype):
    return {key: p.to(dtype) if p.is_floating_point() else p for key, p in state_dict.items()}


@functools.cache
def run_of_original_parameters(name, case):
    """Ours run on the original's own parameters, renamed inside the graph: outputs by golden name, gradients too."""
    vectors = golden.load(name)
    modulator = build(name)
    original = {key: p.requires_grad_(p.is_floating_point()) for key, p in vectors.under("param").items()}
    text, vision = (vectors[f"{case}.in.{key}"].requires_grad_() for key in ("x_text", "x_vision"))
    found = {}
    modulator.ssm.register_forward_hook(lambda _, args, y: found.update({"mid.ssm_in": args[0], "mid.ssm_out": y}))
    parameters = renamed(original, vectors.metadata["ssm"])
    y, w = torch.func.functional_call(modulator, parameters, (text, vision), {"return_weights": True})
    found |= {"out.y": y, "mid.attn_mean": w}
    leaves = {f"grad.param.{key}": p for key, p in original.items() if p.requires_grad}
    leaves |= {"grad.x_text": text, "grad.x_vision": vision}
    gradients = torch.autograd.grad(y, list(leaves.values()), vectors[f"{case}.in.cotangent"])
    return found, dict(zip(leaves, gradients))


@UNMASKED
@pytest.mark.parametrize("key", ["mid.attn_mean", "mid.ssm_in", "mid.ssm_out", "out.y"])
def test_outputs_are_the_originals(name, case, key):
    found, _ = run_of_original_parameters(name, case)
    assert_close(found[key], golden.load(name)[f"{case}.{key}"], relative=1e-12)


@UNMASKED
def test_every_gradient_is_the_originals(name, case):
    """That of S4's C too: the original's is with respect to the folded C, so ours flows through the unfolding."""
    vectors = golden.load(name)
    _, gradients = run_of_original_parameters(name, case)
    wanted = {f"grad.{key}": value for key, value in vectors.under(f"{case}.grad").items()}
    assert gradients.keys() == wanted.keys()
    for key, value in wanted.items():
        scale = largest(vectors[f"{case}.grad.x_text"])
        assert_close(gradients[key], value, relative=1e-9, absolute=1e-12 * scale)


@UNMASKED
def test_the_context_is_the_originals(name, case):
    vectors, modulator = golden.load(name), build(name)
    values = modulator.v_proj(vectors[f"{case}.in.x_vision"])
    _, w = modulator(vectors[f"{case}.in.x_text"], vectors[f"{case}.in.x_vision"], return_weights=True)
    assert_close(w @ values, vectors[f"{case}.mid.context"], relative=1e-12)


@MASKED
def test_masked_cases_agree_where_no_masked_token_came_before(name):
    """The original lets masked tokens into its scan; ours have none. Before the scan all kept tokens agree."""
    vectors, modulator = golden.load(name), build(name)
    text_mask = vectors["g13_masked.in.text_mask"]
    found = {}
    modulator.ssm.register_forward_hook(lambda _, args, y: found.update({"mid.ssm_in": args[0], "mid.ssm_out": y}))
    y, w = modulator(
        vectors["g13_masked.in.x_text"],
        vectors["g13_masked.in.x_vision"],
        text_mask,
        vectors["g13_masked.in.vision_mask"],
        return_weights=True,
    )
    found |= {"out.y": y, "mid.attn_mean": w}
    untouched = text_mask.long().cumprod(1).bool()
    assert untouched.sum(1).tolist() == [7, 2]
    for key, where in (
        ("mid.attn_mean", text_mask),
        ("mid.ssm_in", text_mask),
        ("mid.ssm_out", untouched),
        ("out.y", untouched),
    ):
        assert_close(found[key][where], vectors[f"g13_masked.{key}"][where], relative=1e-12)
        assert (found[key][~text_mask] == 0).all()


@UNMASKED
def test_float32_error_is_within_the_originals_own(name, case):
    vectors = golden.load(name)
    modulator = build(
        name, {key: p.float() if p.is_floating_point() else p for key, p in vectors.under("param").items()}
    )
    y = modulator(vectors[f"{case}.in.x_text"].float(), vectors[f"{case}.in.x_vision"].float())
    assert y.dtype == torch.float32
    assert_within_budget(y, vectors[f"{case}.f32.out.y"], vectors[f"{case}.out.y"])


@UNMASKED
def test_steps_give_the_originals_columns(name, case):
    """The original has no cached decoding that agrees with itself; ours gives the columns of its full run."""
    vectors, modulator = golden.load(name), build(name)
    text, vision, wanted = (vectors[f"{case}.{key}"] for key in ("in.x_text", "in.x_vision", "out.y"))
    y, state = modulator.prefill(text[:, :6], vision)
    assert_close(y, wanted[:, :6], relative=1e-11)
    for t in range(6, text.shape[1]):
        y, state = modulator.step(text[:, t], state)
        assert_close(y, wanted[:, t], relative=1e-11)


@UNMASKED
def test_a_checkpoint_taken_before_the_first_call_is_the_same_layer(name, case):
    """l_kernel = 0 means that C is not folded yet. S4D has nothing to fold."""
    vectors = golden.load(name)
    before = vectors.under("param_before_first_forward")
    if vectors.metadata["ssm"] == "s4":
        assert before["s4.layer.kernel.l_kernel"] == 0
        assert vectors["param.s4.layer.kernel.l_kernel"] > 0
    raw = build(name, vectors.under("param") | before)
    y = raw(vectors[f"{case}.in.x_text"], vectors[f"{case}.in.x_vision"])
    assert_close(y, vectors[f"{case}.out.y"], relative=1e-11)


@FILE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_layer_has_the_dtype_of_the_state_dict(name, dtype):
    modulator = build(name, cast(golden.load(name).under("param"), dtype))
    for key, parameter in modulator.named_parameters():
        wide = torch.float32 if key.startswith("ssm.kernel.") and dtype == torch.bfloat16 else dtype
        assert parameter.dtype == wide, key
    assert modulator(torch.randn(1, 3, 32, dtype=dtype), torch.randn(1, 5, 24, dtype=dtype)).dtype == dtype


def test_kernel_taps_reach_the_layer():
    name = next(name for name in FILES if "s4_" in name)
    assert build(name, kernel_taps=512).ssm.kernel_taps == 512
    assert build(name).ssm.kernel_taps is None
    assert build(name).config.grid_positions is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"film_in.bias": None}, "missing film_in.bias; expected the keys"),
        ({"mod_gate": None}, "missing mod_gate"),
        ({"s4.{D}": None}, r"missing s4\.(layer\.)?D"),
        ({"s4.surplus": torch.zeros(1)}, r"unknown s4\.surplus"),
        ({"importance.weight": torch.zeros(1)}, r"unknown importance\.weight"),
        ({"mod_gate": torch.zeros(2)}, r"mod_gate has shape \[2\]; expected one element"),
        ({"film_out.weight": torch.zeros(64, 31)}, r"film_out\.weight has shape \[64, 31\]; expected \[64 32\]"),
        ({"k_proj.weight": torch.zeros(32, 23)}, r"v_proj\.weight has shape \[32, 24\]; expected .*V = 23"),
        ({"ffn.4.weight": torch.zeros(32, 96)}, r"ffn\.4\.weight has shape \[32, 96\]; expected .*F = 128"),
        ({"s4.output_linear.0.weight": torch.zeros(64, 32)}, r"output_linear\.0\.weight has shape \[64, 32\]"),
    ],
)
@pytest.mark.parametrize("name", [FILES[0], FILES[-1]])
def test_a_state_dict_that_does_not_fit_is_refused_by_key(name, change, words):
    state_dict = golden.load(name).under("param")
    for key, value in change.items():
        key = key.replace("{D}", "layer.D" if "s4.layer.D" in state_dict else "D")
        if value is None:
            del state_dict[key]
        else:
            state_dict[key] = value
    with pytest.raises(ValueError, match=words):
        build(name, state_dict)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ssm": "mamba"}, "ssm is 'mamba'; expected one of s4, s4d"),
        ({"heads": 8}, r"q_proj\.weight has 32 rows; expected heads x head_dim = 8 x 8"),
        ({"kernel_taps": 0}, "kernel_taps is 0; expected at least 1"),
        ({"top_k": -2}, "top_k is -2; expected at least 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, words):
    name = next(name for name in FILES if "s4_" in name)
    with pytest.raises(ValueError, match=words):
        build(name, **change)
