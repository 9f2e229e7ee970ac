"""What came with a row and what did not: batches of any frames and padding, streams, memory, and bad input."""

import copy

import foveated
import pytest
import tiny_models
import torch
from foveated import MODES, make_foveated, make_frames
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, largest

from firebolt_vl.model.compat import CACHE

# Both sides are float32: another order of the same operations.
ROUNDING = 2e-5
kinds = pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
modes = pytest.mark.parametrize("mode", MODES)

MODELS = {}


def model_of(**config):
    key = tuple(sorted(config.items()))
    if key not in MODELS:
        MODELS[key] = make_foveated(**config)
    return MODELS[key]


def batch(counts, lengths, side="right", seed=0) -> dict[str, torch.Tensor]:
    return {**make_frames(counts, seed), **tiny_models.make_text(lengths, seed, side)}


def row_of(inputs, row: int) -> dict[str, torch.Tensor]:
    """A row alone, without padding of either kind; without frames if it has none."""
    seen, read = inputs["frame_mask"][row], inputs["attention_mask"][row].bool()
    alone = {name: inputs[name][row : row + 1][:, read] for name in ("input_ids", "attention_mask")}
    return {**alone, "frames": inputs["frames"][row : row + 1][:, seen]} if seen.any() else alone


@kinds
@modes
@pytest.mark.parametrize("side", ["left", "right"])
@given(data=st.data())
def test_a_row_gives_the_same_alone_and_in_any_batch(deep, mode, side, data):
    model = model_of(deep_query=deep, lambda_coarse=0.5)
    rows = data.draw(st.integers(1, 3))
    counts = [data.draw(st.integers(0, 4)) for _ in range(rows)]
    lengths = [data.draw(st.integers(2, 7)) for _ in range(rows)]
    inputs = batch(counts, lengths, side, seed=sum(counts) + 7 * sum(lengths))
    if data.draw(st.booleans()):  # holes among the frames and in the text
        order = torch.randperm(inputs["frame_mask"].shape[1])
        inputs["frames"], inputs["frame_mask"] = inputs["frames"][:, order], inputs["frame_mask"][:, order]
    with torch.no_grad():
        together = model(**inputs, mode=mode)
        losses, labels = [], []
        for row in range(rows):
            alone = model(**row_of(inputs, row), mode=mode)
            seen, read = inputs["frame_mask"][row], inputs["attention_mask"][row].bool()
            text = together.logits[row, -len(read) :][read]
            assert_close(text, alone.logits[0, -len(text) :], relative=ROUNDING)
            if mode == "coarse_only" and seen.any():
                assert_close(together.logits[row, : len(seen)][seen], alone.logits[0, : seen.sum()], relative=ROUNDING)
            if mode == "autoregressive" and seen.any():
                assert_close(together.logits[row, 0], alone.logits[0, 0], relative=ROUNDING)
            first = mode != "coarse_fine" and bool(seen.any())
            labels.append(len(text) - 1 + first)
            losses.append(alone.loss * labels[-1])
    assert_close(together.loss, sum(losses) / sum(labels), relative=ROUNDING)


@kinds
@modes
def test_gradients_do_not_depend_on_the_batch_either(deep, mode):
    """Of frames that are not there, which hold nan, no gradient comes."""
    model = model_of(deep_query=deep)
    inputs = batch([3, 1, 0], [5, 5, 5])
    gradients = []
    for parts in ([inputs], [row_of(inputs, row) for row in range(3)]):
        model.zero_grad()
        for part in parts:
            out = model(**part, mode=mode)
            (out.logits[:, -5:] * torch.linspace(-1, 1, 260)).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], relative=1e-4, absolute=1e-5)
    model.zero_grad()


@kinds
@pytest.mark.parametrize("original", [False, True])
@given(data=st.data())
def test_watching_in_pieces_equals_watching_at_once(deep, original, data):
    model = model_of(deep_query=deep, original_behaviour=original)
    counts = [5, data.draw(st.integers(0, 5))]
    inputs = make_frames(counts, seed=counts[1])
    if original:
        inputs["frames"] = inputs["frames"].nan_to_num(0.0)
    with torch.no_grad():
        whole, cache = model.watch(**inputs)
        parts, state, start = [], None, 0
        while start < 5:
            end = data.draw(st.integers(start + 1, 5))
            now = {name: x[:, start:end] for name, x in inputs.items()}
            visual, state = model.watch(**now, state=state)
            parts.append(visual)
            start = end
        for name in ("tokens", "features", "queries"):
            assert_close(torch.cat([getattr(part, name) for part in parts], 1), getattr(whole, name), relative=ROUNDING)
        text = tiny_models.make_text([4, 4])
        found = model(**text, past_key_values=state).logits
        assert_close(found, model(**text, past_key_values=cache).logits, relative=ROUNDING)
        assert_close(found, model(**text, **inputs, mode="autoregressive").logits[:, 1:], relative=ROUNDING)


def test_a_state_that_was_asked_can_go_on_watching():
    model, inputs = model_of(), make_frames([4, 4])
    text = tiny_models.make_text([3, 3])
    with torch.no_grad():
        _, wanted = model.watch(inputs["frames"])
        _, state = model.watch(inputs["frames"][:, :2])
        aside = copy.deepcopy(state)
        model(**text, past_key_values=state)
        with pytest.raises(ValueError, match="state has 3 text columns; expected none"):
            model.watch(inputs["frames"][:, 2:], state=state)
        state.crop(-3)
        for begun in (state, aside):
            _, begun = model.watch(inputs["frames"][:, 2:], state=begun)
            found = model(**text, past_key_values=begun).logits
            assert_close(found, model(**text, past_key_values=copy.deepcopy(wanted)).logits, relative=ROUNDING)


def test_each_frame_goes_through_the_tower_once():
    model, inputs = model_of(frame_block=2), batch([4, 1], [3, 3])
    blocks = []
    hook = model.encoder.dino.embeddings.register_forward_pre_hook(lambda _, args: blocks.append(len(args[0])))
    for mode in MODES:
        blocks.clear()
        model(**inputs, mode=mode)
        assert blocks == [2, 2, 1]
    blocks.clear()
    model.generate(**inputs, max_new_tokens=3, num_beams=2, mode="coarse_fine")
    assert blocks == [2, 2, 1]
    hook.remove()


@pytest.mark.parametrize("deep", [True, False])
def test_the_size_of_a_block_changes_nothing(deep):
    inputs = batch([4, 3], [3, 3])
    with torch.no_grad():
        wanted = model_of(deep_query=deep, frame_block=16)(**inputs).logits
        for block in (1, 3):
            assert_close(model_of(deep_query=deep, frame_block=block)(**inputs).logits, wanted, relative=ROUNDING)


@modes
@kinds
def test_attention_adds_up_and_points_where_the_query_looks(mode, deep):
    """A patch that the query is made to match gets the weight; the class token stands first, patches row by row."""
    model, inputs = model_of(deep_query=deep), make_frames([3, 2])
    with torch.no_grad():
        visual = model.get_visual_tokens(**inputs, mode=mode, return_attention=True)
        plain = model.get_visual_tokens(**inputs, mode=mode)
    layers = 3 if deep else 1
    assert visual.attention.shape == (2, 3, layers, 3, 5)
    kept = inputs["frame_mask"]
    assert_close(visual.attention[kept].sum(-1), torch.ones(5, layers, 3), relative=1e-5)
    assert largest(visual.attention[~kept]) == 0
    assert plain.attention is None
    for name in ("tokens", "queries"):
        assert_close(getattr(visual, name), getattr(plain, name), relative=ROUNDING)


def test_the_map_points_at_the_patch_that_holds_what_the_query_seeks():
    """Rows of the map run from the top, columns from the left."""
    model = make_foveated(deep_query=False)
    layer = model.encoder.layers[-1]
    with torch.no_grad():
        frames = torch.randn(1, 1, 3, 28, 28)
        features = model.encoder.remember(frames[0], deep=False, return_features=True).features[0]
        keys = layer.attention.k_proj(layer.norm1(features))  # [5,24]
        for patch in range(4):
            alike = keys[1 + patch] - keys.mean(0)
            model.q_static.copy_(
                10 * torch.linalg.lstsq(model.encoder.query_input_proj.weight, alike[:, None]).solution.T
            )
            maps = model.get_visual_tokens(frames, mode="coarse_only", return_attention=True).maps()
            assert maps.shape == (1, 1, 2, 2)
            assert_close(maps.sum(), torch.tensor(1.0), relative=1e-5)
            scores = keys @ model.encoder.query_input_proj(model.q_static)[0]
            heads = (keys * model.encoder.query_input_proj(model.q_static)).unflatten(-1, (3, 8)).sum(-1) / 8**0.5
            wanted = heads.softmax(0).mean(1)[1:]
            assert_close(maps.flatten(), wanted / wanted.sum(), relative=1e-4)
            assert scores.numel() == 5


def test_the_queries_of_a_frame_come_from_the_frames_before_it():
    """Another third frame moves no query up to its own, and all after it."""
    model, inputs = model_of(), make_frames([5])
    changed = inputs["frames"].clone()
    changed[:, 2] = torch.randn(3, 28, 28)
    for mode in ("coarse_fine", "autoregressive"):
        with torch.no_grad():
            one = model.get_visual_tokens(inputs["frames"], mode=mode).queries
            other = model.get_visual_tokens(changed, mode=mode).queries
        assert_close(other[:, :3], one[:, :3], relative=ROUNDING)
        assert all(largest(other[:, frame] - one[:, frame]) > 1e-2 for frame in (3, 4))
        assert_close(one[:, :1], model.q_init.detach()[None], relative=1e-6)


def test_labels_say_what_a_loss_mask_says():
    model, inputs = model_of(), batch([2, 3], [6, 4])
    mask = torch.zeros_like(inputs["input_ids"])
    mask[:, 2:4] = 1
    labels = inputs["input_ids"].masked_fill(mask == 0, -100)
    for mode in MODES:
        wanted = model(**inputs, loss_mask=mask, mode=mode)
        found = model(**inputs, labels=labels, mode=mode)
        assert_close(found.loss, wanted.loss, relative=1e-6)
        # Trainer divides by the labels of a whole step.
        shared = model(**inputs, labels=labels, mode=mode, num_items_in_batch=8).loss
        assert_close(shared * 8 / 4, wanted.loss, relative=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, inputs = make_foveated(frame_block=2), batch([3, 2], [4, 4])
    model.train()
    gradients = []
    for enable in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        enable()
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, saved in zip(*gradients):
        assert_close(saved, plain, relative=1e-4, absolute=1e-6)
    with pytest.raises(ValueError, match="mode is 'autoregressive' with gradient checkpointing; expected another mode"):
        model(**inputs, mode="autoregressive")


@pytest.mark.parametrize("mode", MODES)
def test_autocast_and_half_precision_stay_close(mode):
    model, inputs = make_foveated(), batch([3, 2], [4, 4])
    with torch.no_grad():
        wanted = model(**inputs, mode=mode).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**inputs, mode=mode).logits
        assert_close(found.float(), wanted, relative=0.1)
        model.to(torch.bfloat16)
        inputs["frames"] = inputs["frames"].to(torch.bfloat16)
        assert_close(model(**inputs, mode=mode).logits.float(), wanted, relative=0.1)


class TestRefusals:
    def refused(self, words: str, **inputs):
        with pytest.raises(ValueError, match=words):
            model_of()(**inputs)

    def test_shapes_are_named(self):
        inputs = batch([2, 3], [4, 4])
        self.refused(
            r"frames has shape \[2, 3, 28, 28\]; expected \[B,T,3,H,W\]", **{**inputs, "frames": inputs["frames"][:, 0]}
        )
        self.refused(
            r"frame_mask has shape \[2, 2\]; expected \[2, 3\]", **{**inputs, "frame_mask": inputs["frame_mask"][:, :2]}
        )
        self.refused(r"at least one frame", **{**inputs, "frames": inputs["frames"][:, :0], "frame_mask": None})
        self.refused(
            r"frames has 1 rows; expected 2", **{**inputs, "frames": inputs["frames"][:1, :2], "frame_mask": None}
        )
        self.refused(
            r"attention_mask has shape \[2, 3\]; expected \[2, 4\]", **{**inputs, "attention_mask": torch.ones(2, 3)}
        )
        self.refused(r"loss_mask has shape \[2, 5\]", **inputs, loss_mask=torch.ones(2, 5))
        self.refused(
            r"visual_tokens has shape \[2, 3\]; expected \[B,T,32\]",
            input_ids=inputs["input_ids"],
            visual_tokens=torch.ones(2, 3),
        )

    def test_alternatives_exclude_each_other(self):
        inputs = batch([2], [4])
        self.refused(
            "loss_mask and labels are both given", **inputs, labels=inputs["input_ids"], loss_mask=torch.ones(1, 4)
        )
        self.refused("frames and visual_tokens are both given", **inputs, visual_tokens=torch.ones(1, 2, 32))
        self.refused(
            "mode is 'fine'; expected one of coarse_only, coarse_fine, autoregressive",
            **inputs,
            mode="fine",
        )

    def test_frames_after_text_and_strange_states_are_refused(self):
        model, inputs = model_of(), batch([2, 2], [4, 4])
        cache = model(**inputs)[CACHE]
        with pytest.raises(ValueError, match="frames is given with a filled cache"):
            model(inputs["input_ids"], frames=inputs["frames"], past_key_values=cache)
        cache.crop(-4)
        with pytest.raises(ValueError, match="state is a cache of another mode; expected one that `watch` returned"):
            model.watch(inputs["frames"], state=cache)
        with pytest.raises(ValueError, match="only 0 text columns were seen"):
            cache.crop(-1)
        _, state = model.watch(inputs["frames"])
        with pytest.raises(ValueError, match="state has 2 rows; expected 1"):
            model.watch(inputs["frames"][:1], state=state)
        with pytest.raises(ValueError, match=f"{CACHE} has 2 rows; expected 1"):
            model(inputs["input_ids"][:1], past_key_values=state)

    def test_configurations_that_cannot_be(self):
        with pytest.raises(ValueError, match="FoveatedVLMConfig: mode is 'coarse'; expected one of coarse_only"):
            foveated.make_foveated_config(mode="coarse")
        with pytest.raises(ValueError, match="FoveatedVLMConfig: frame_block is 0; expected at least 1"):
            foveated.make_foveated_config(frame_block=0)
        with pytest.raises(ValueError, match="text_config is of a 'lfm2' model; expected a 'llama' model"):
            foveated.FoveatedVLMConfig(text_config={"model_type": "lfm2"})
