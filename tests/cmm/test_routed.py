"""The routed connector: the original's numbers, what each mending changes, and what it promises beyond connectors."""

import math
from dataclasses import fields

import golden
import pytest
import torch
import torch.nn.functional as F
from connectors import (
    GRID_WIDTH,
    TEXT_WIDTH,
    make_config,
    make_connector,
    make_routed_config,
    random_boxes,
    random_masks,
    run_in_pieces,
)
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, largest

from firebolt_vl.cmm import S4, S4D, Routed, RoutedConfig
from firebolt_vl.cmm.experts import Experts, balance
from firebolt_vl.cmm.positions import default_boxes
from firebolt_vl.cmm.routing import reading_order

VECTORS = golden.load("firebolt_v2_routed")
PARAMETERS = VECTORS.under("param")
# The original's names of the golden gradients -> ours.
OURS = {
    "expert_connector.router.weight": "experts.router.weight",
    "expert_connector.router.bias": "experts.router.bias",
    "ssm.norm.weight": "ssm.norm.weight",
    "ssm.norm.bias": "ssm.norm.bias",
    "ssm.attn.in_proj_weight": "ssm.qkv.weight",
    "ssm.attn.in_proj_bias": "ssm.qkv.bias",
    "ssm.attn.out_proj.weight": "ssm.out.weight",
    "ssm.attn.out_proj.bias": "ssm.out.bias",
    "ssm.ff.0.weight": "ssm.up.weight",
    "ssm.ff.0.bias": "ssm.up.bias",
    "ssm.ff.3.weight": "ssm.down.weight",
    "ssm.ff.3.bias": "ssm.down.bias",
    "visual_proj.proj.0.weight": "projector.linears.0.weight",
    "visual_proj.proj.0.bias": "projector.linears.0.bias",
    "visual_proj.proj.1.weight": "projector.norms.0.weight",
    "visual_proj.proj.1.bias": "projector.norms.0.bias",
    **{
        f"expert_connector.experts.{e}.ff.{layer}.{one}": f"experts.experts.{e}.{name}.{one}"
        for e in range(4)
        for layer, name in ((0, "up"), (3, "down"))
        for one in ("weight", "bias")
    },
}


def original(**config) -> Routed:
    return Routed.from_original(PARAMETERS, top_k=5, **config).eval()


def some_text(B=2, T=3, width=TEXT_WIDTH, seed=2):
    return torch.randn(B, T, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_patches(B=2, N=6, seed=3):
    return torch.randn(B, N, GRID_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**config) -> Routed:
    return make_connector("routed_prepended", **config)


def test_tokens_balance_and_every_gradient_are_the_originals():
    connector, z = original(), VECTORS["z"].requires_grad_()
    y, loss = connector(some_text(width=24), z, return_balance=True)
    tokens = y[:, :5]
    assert_close(tokens, VECTORS["tokens"], relative=1e-14)
    assert_close(loss, VECTORS["balance"].squeeze(), relative=1e-14)
    ((tokens * VECTORS["cotangent"]).sum() + loss).backward()
    assert_close(z.grad, VECTORS["grad.z"], relative=1e-13)
    assert OURS.keys() == VECTORS.under("grad").keys() - {"z"}
    for theirs, ours in OURS.items():
        assert_close(connector.get_parameter(ours).grad, VECTORS[f"grad.{theirs}"], relative=1e-12)
    assert all(p.grad is None for p in connector.router.parameters())


def test_the_mean_of_an_image_is_the_originals():
    connector = original(insert="mean_at_token", image_token_id=7)
    y, loss = connector(some_text(width=24), VECTORS["z"], return_balance=True)
    assert_close(y[:, 0], VECTORS["mean_token"], relative=1e-14)
    assert y.shape[1] == 1 + 3
    assert loss == 0, "the original skips the balance where nothing is prepended"
    always = original(insert="mean_at_token", image_token_id=7, balance="always")
    assert_close(always(some_text(width=24), VECTORS["z"], return_balance=True)[1], VECTORS["balance"].squeeze())


def test_experts_are_the_originals():
    connector = original()
    z = VECTORS["z"].gather(1, VECTORS["indices"][..., None].expand(-1, -1, 32))
    y, _ = connector.experts(z)
    assert_close(y, VECTORS["experts"], relative=1e-14)
    assert_close(connector.experts.router(z), VECTORS["router_logits"], relative=1e-14)
    assert_close(connector.ssm(y), VECTORS["mixed"], relative=1e-14)


def by_hand(connector: Routed, patches, boxes, masks, images):
    """The mended equations, patch by patch in Python: of each row a list of (image, tokens [k,D_t]) and the balance."""
    config, rows, chosen_by, chances = connector.config, [], [], []
    for b in range(len(patches)):
        found = []
        for image in sorted({int(i) for i, there in zip(images[b], masks[b]) if there}):
            mine = [n for n in range(patches.shape[1]) if masks[b, n] and images[b, n] == image]
            placed = {n: connector.positions(patches[b : b + 1, n : n + 1], boxes[b : b + 1, n : n + 1],
                                             images[b : b + 1, n : n + 1])[0, 0] for n in mine}  # fmt: skip
            w, bias = connector.router.importance.weight[0], connector.router.importance.bias[0]
            score = {n: float(w @ placed[n] + bias) for n in mine}
            kept = sorted(mine, key=lambda n: -score[n])[: config.top_k or len(mine)]
            kept.sort(key=lambda n: (float(boxes[b, n, 0]), float(boxes[b, n, 1])))
            mixed = []
            for n in kept:
                z = placed[n] / (1 + math.exp(-score[n]))
                logits = connector.experts.router.weight @ z + connector.experts.router.bias
                p = logits.exp() / logits.exp().sum()
                best = sorted(range(config.experts), key=lambda e: -float(logits[e]))[: config.experts_used]
                share = {e: float(logits[e].exp()) for e in best}
                chosen_by.append([e in best for e in range(config.experts)])
                chances.append(p)
                y = z.clone()
                for e in best:
                    up, down = connector.experts.experts[e].up, connector.experts.experts[e].down
                    hidden = up.weight @ z + up.bias
                    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
                    y = y + share[e] / sum(share.values()) * (down.weight @ hidden + down.bias)
                mixed.append(y)
            state = connector.ssm(torch.stack(mixed)[None])[0]
            linear, norm = connector.projector.linears[0], connector.projector.norms[0]
            x = state @ linear.weight.mT + linear.bias
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
            x = x * norm.weight + norm.bias
            found.append(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
        rows.append(found)
    f, p = torch.tensor(chosen_by).double().mean(0), torch.stack(chances).mean(0)
    return rows, config.experts * (f * p).sum()


@given(st.data())
def test_tokens_are_those_worked_out_patch_by_patch(data):
    """Several images of different sizes in a row, masks, rows that differ in all of it."""
    B, N = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    patches, boxes = some_patches(B, N, seed=5), random_boxes(B, N, generator=generator).double()
    masks = data.draw(random_masks(B, N))
    images = torch.randint(0, 3, (B, N), generator=generator)
    connector = small(top_k=data.draw(st.sampled_from([1, 2, 3, None])), ssm="s4d", experts_used=2)
    y, loss = connector(some_text(B), patches, None, masks, boxes, grid_images=images, return_balance=True)
    there = connector.inserted_mask(masks, images)
    if not masks.any():
        assert not there.any()
        assert loss == 0
        return
    with torch.no_grad():
        rows, wanted = by_hand(connector, patches, boxes, masks, images)
    assert_close(loss, wanted, relative=1e-12)
    for b, row in enumerate(rows):
        found = y[b, : there.shape[1]][there[b]]
        assert len(found) == sum(len(tokens) for tokens in row)
        if row:
            assert_close(found, torch.cat(row), relative=1e-11)
        assert (y[b, : there.shape[1]][~there[b]] == 0).all()
    mean = make_connector("routed_mean", top_k=connector.config.top_k, experts_used=2)
    mean.load_state_dict(connector.state_dict())
    y = mean(some_text(B), patches, None, masks, boxes, grid_images=images)
    there = mean.inserted_mask(masks, images)
    for b, row in enumerate(rows):
        if row:
            found = y[b, : there.shape[1]][there[b]]
            assert_close(found, torch.stack([tokens.mean(0) for tokens in row]), relative=1e-11)


@pytest.mark.parametrize("top_k", [5, 9, 0, None])
def test_as_many_as_there_are_patches_is_no_routing(top_k):
    patches, boxes = some_patches(N=5), default_boxes(5).expand(2, -1, -1)
    connector = small(top_k=top_k, gate="none", experts_used=2)
    y = connector(some_text(), patches)
    z = connector.positions(patches, boxes)
    z = z + connector.experts(z)[0]
    assert_close(y[:, :5], connector.projector(connector.ssm(z)), relative=1e-12)


@pytest.mark.parametrize("route_by", ["score", "text"])
@pytest.mark.parametrize("gate", ["sigmoid", "straight_through", "none"])
def test_a_router_learns_through_its_gate_and_only_so(gate, route_by):
    connector = small(gate=gate, route_by=route_by)
    y = connector(some_text(), some_patches(N=5))
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)).sum().backward()
    for name, parameter in connector.router.named_parameters():
        if gate == "none":
            assert parameter.grad is None
            assert not parameter.requires_grad
        else:
            assert largest(parameter.grad) > 0, name
    connector.requires_grad_(False).requires_grad_(True)
    assert all(p.requires_grad == (gate != "none") for p in connector.router.parameters())


def test_straight_through_has_the_numbers_of_none_and_the_gradient_of_the_sigmoid():
    text, patches = some_text(), some_patches(N=5)
    through, none = small(gate="straight_through"), small(gate="none")
    assert_close(through(text, patches), none(text, patches), relative=1e-14)
    z, scores = some_patches(2, 3), torch.randn(2, 3, 1, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad((through._gated(z, scores) ** 2).sum(), scores)
    gate = scores.sigmoid()
    assert_close(found, (2 * z * z).sum(-1, keepdim=True) * gate * (1 - gate), relative=1e-12)


def test_order_and_position_are_those_of_the_image_whatever_order_patches_come_in():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]])
    assert reading_order(boxes[None])[0].tolist() == [0, 1, 2, 3]
    assert reading_order(boxes.flip(0)[None])[0].tolist() == [3, 2, 1, 0]
    scored = small(order="score", grid_positions=False, gate="none", residual=False)
    patches = some_patches(N=5)
    scores = scored.router.importance(patches).squeeze(-1)
    first = scores.argmax(1)
    best = patches[torch.arange(2), first]
    y = scored(some_text(), patches)
    # The first token of a causal SSM depends on the first patch alone.
    alone = scored.projector(scored.ssm(scored.experts(best[:, None])[0]))
    assert_close(y[:, 0], alone[:, 0], relative=1e-12)


@given(st.data())
def test_the_question_chooses_and_pieces_give_what_the_whole_gives(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    connector = small(route_by="text", top_k=2)
    text, patches = some_text(3, 6), some_patches(3, 5)
    mask, grid_mask = data.draw(random_masks(3, 6)), data.draw(random_masks(3, 5))
    prompt = torch.zeros(3, 6, dtype=torch.bool)
    prompt[:, : data.draw(st.integers(1, 4))] = True
    sides = {"grid_mask": grid_mask, "grid_boxes": random_boxes(3, 5, generator=generator)}
    whole = connector(text, patches, mask, **sides, prompt_mask=prompt)
    state = connector.encode_grids(patches, **sides, prompt=text, prompt_mask=prompt & mask)
    first, state = connector.prefill(text[:, :2], text_mask=mask[:, :2], state=state)
    second, state = connector.prefill(text[:, 2:], text_mask=mask[:, 2:], state=state)
    assert_close(torch.cat([first, second], 1), whole, relative=1e-12)
    other = text.clone()
    other[:, 4:] = torch.randn(3, 2, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    M = connector.inserted_mask(grid_mask).shape[1]
    changed = connector(other, patches, mask, **sides, prompt_mask=prompt)
    assert torch.equal(changed[:, :M], whole[:, :M]), "an answer changes no choice"


def test_scores_by_text_are_the_share_of_the_questions_words():
    connector = small(route_by="text", top_k=None, gate="sigmoid")
    text, patches = some_text(1, 3), some_patches(1, 5)
    grid_mask = torch.tensor([[True, True, False, True, True]])
    placed = connector.positions(patches, default_boxes(5)[None]).masked_fill(~grid_mask[..., None], 0)
    q = (text @ connector.router.q_proj.weight.mT).view(3, 2, 5)
    k = (placed @ connector.router.k_proj.weight.mT).view(5, 2, 5)[[0, 1, 3, 4]]
    w = torch.einsum("thd,ghd->htg", q, k).div(math.sqrt(5)).softmax(-1).mean((0, 1))
    seen = []
    connector.router.register_forward_hook(lambda _, args, scores: seen.append(scores))
    connector(text, patches, None, grid_mask)
    assert_close(seen[0][0, [0, 1, 3, 4]], (4 * w).log(), relative=1e-12)
    assert_close(seen[0].sigmoid()[0, 0], 4 * w[0] / (1 + 4 * w[0]), relative=1e-12)


def test_a_question_is_needed_where_it_chooses():
    connector = small(route_by="text")
    with pytest.raises(ValueError, match="prompt is None; expected the question's embeddings"):
        connector.encode_grids(some_patches(N=5))
    with pytest.raises(ValueError, match=r"prompt_mask has shape \[2, 4\]"):
        connector(some_text(), some_patches(N=5), prompt_mask=torch.ones(2, 4, dtype=torch.bool))
    empty = connector(some_text(), some_patches(N=5), prompt_mask=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.isfinite(empty).all()


def test_experts_of_few_tokens_and_of_all_give_the_same():
    experts = Experts(6, 4, 5, 2, 0.0).double()
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    a = experts.router(x).softmax(-1)
    a = a * (a > 0.2)
    gathered, everywhere = experts._gathered(x, a), experts._all(x, a)
    assert_close(gathered, everywhere, relative=1e-14)
    grads = [torch.autograd.grad(y.square().sum(), [x, *experts.parameters()], retain_graph=True) for y in
             (gathered, everywhere)]  # fmt: skip
    for one, other in zip(*grads):
        assert_close(one, other, relative=1e-12)


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero():
    experts = Experts(4, 3, 3, 1, 0.0)
    with torch.no_grad():
        experts.router.weight.zero_()
        experts.router.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    experts(torch.randn(2, 3, 4))[0].sum().backward()
    for expert in experts.experts[1:]:
        assert all(p.grad is not None and (p.grad == 0).all() for p in expert.parameters())


def test_balance_is_least_where_tokens_are_spread():
    spread = balance(torch.eye(4) * 9, torch.eye(4, dtype=torch.bool), None)
    alike = balance(torch.eye(4)[:1].expand(4, -1) * 9, torch.eye(4, dtype=torch.bool)[:1].expand(4, -1), None)
    assert_close(spread, torch.tensor(1.0), relative=1e-6)
    assert 3.9 < alike < 4
    kept = torch.tensor([True, False, False, False])
    assert_close(balance(torch.eye(4) * 9, torch.eye(4, dtype=torch.bool), kept), alike, relative=1e-2)


def test_patches_spread_over_the_experts_under_the_balance_loss():
    """At first one expert takes nearly all; the loss alone, a few steps down, evens them out."""
    torch.manual_seed(0)
    experts = Experts(8, 4, 4, 1, 0.0)
    with torch.no_grad():
        experts.router.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    x = torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(experts.router.parameters(), lr=0.5)

    def share():
        return F.one_hot(experts.router(x).argmax(-1), 4).float().mean((0, 1)).max()

    begun = share()
    for _ in range(100):
        optimizer.zero_grad()
        experts(x)[1].backward()
        optimizer.step()
    assert begun > 0.9
    assert share() < 0.5


def block_of_original(kind, width):
    """A state-space block's parameters under the original's names, from one of ours."""
    torch.manual_seed(4)
    if kind == "s4":
        ours = S4(width, 8).double()
        kernel = ours.kernel
        block = {
            "layer.D": kernel.D[None],
            "layer.kernel.A_real": kernel.log_A_real,
            "layer.kernel.A_imag": -kernel.A_imag,
            **{f"layer.kernel.{name}": getattr(kernel, name)[None] for name in "PBC"},
            "layer.kernel.inv_dt": kernel.log_dt[:, None],
            "layer.kernel.l_kernel": torch.tensor(0),
        }
    else:
        ours = S4D(width, 8).double()
        kernel = ours.kernel
        block = {f"kernel.{name}": getattr(kernel, name) for name in ("log_A_real", "A_imag", "C", "log_dt")}
        block["D"] = kernel.D
    block |= {"output_linear.0.weight": ours.output.weight[..., None], "output_linear.0.bias": ours.output.bias}
    return ours, {name: tensor.detach() for name, tensor in block.items()}


@pytest.mark.parametrize(("kind", "prefix"), [("s4", "ssm."), ("s4d", "ssm."), ("s4d", "ssm.inner.")])
def test_the_originals_state_space_models_load(kind, prefix):
    ours, block = block_of_original(kind, 32)
    state = {name: tensor for name, tensor in PARAMETERS.items() if not name.startswith("ssm.")}
    state |= {prefix + name: tensor for name, tensor in block.items()}
    connector = Routed.from_original(state, top_k=5).eval()
    assert (connector.config.ssm, connector.config.state_size) == (kind, 8)
    y = connector(some_text(width=24), VECTORS["z"])
    wanted = connector.projector(ours(VECTORS["experts"]))
    assert_close(y[:, :5], wanted, relative=1e-12)


def test_several_projector_layers_load():
    state = dict(PARAMETERS)
    generator = torch.Generator().manual_seed(0)
    new = {"4.weight": (24, 24), "4.bias": (24,), "5.weight": (24,), "5.bias": (24,)}
    second = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in new.items()}
    connector = Routed.from_original(state | {f"visual_proj.proj.{k}": v for k, v in second.items()}, top_k=5).eval()
    y = connector(some_text(width=24), VECTORS["z"])
    x = VECTORS["tokens"] @ second["4.weight"].mT + second["4.bias"]
    wanted = F.gelu(F.layer_norm(x, (24,), second["5.weight"], second["5.bias"]))
    assert_close(y[:, :5], wanted, relative=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"router.importance.bias": None}, "missing router.importance.bias"),
        ({"extra.weight": torch.zeros(1)}, "unknown extra.weight"),
        ({"ssm.attn.in_proj_weight": None}, "ssm has none of attn.in_proj_weight"),
        ({"expert_connector.router.weight": None}, "expert_connector.router.weight is missing"),
        ({"expert_connector.experts.1.ff.0.weight": torch.zeros(15, 32)}, r"has shape \[15, 32\]; expected"),
        ({"visual_proj.proj.0.bias": torch.zeros(23)}, r"visual_proj.proj.0.bias has shape \[23\]"),
    ],
)
def test_a_state_dict_that_is_not_the_originals_is_refused(change, words):
    state = {name: tensor for name, tensor in (PARAMETERS | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=words):
        Routed.from_original(state, top_k=5)


def test_original_behaviour_undoes_every_mending_and_each_can_be_mended_alone():
    sizes = make_config().to_dict() | {"grid_positions": None, "experts": 3, "expert_width": 4}
    as_written, mended = RoutedConfig(**sizes, original_behaviour=True), RoutedConfig(**sizes)
    switches = [f.name for f in fields(RoutedConfig) if f.default is None and getattr(mended, f.name) is not None]
    assert set(switches) == {"gate", "order", "grid_positions", "residual", "balance", "black_image"}
    for name in switches:
        assert getattr(as_written, name) != getattr(mended, name), name
        alone = RoutedConfig(**sizes | {name: getattr(mended, name)}, original_behaviour=True)
        others = set(switches) - {name}
        assert getattr(alone, name) == getattr(mended, name)
        assert all(getattr(alone, other) == getattr(as_written, other) for other in others)
    assert RoutedConfig.from_dict(as_written.to_dict()) == as_written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts_used": 4}, "experts_used is 4; expected at most 3, the experts"),
        ({"insert": "middle"}, "insert is 'middle'; expected one of"),
        ({"insert": "mean_at_token"}, "image_token_id is None; expected a token"),
        ({"route_by": "luck"}, "route_by is 'luck'"),
        ({"gate": "open"}, "gate is 'open'"),
        ({"order": "random"}, "order is 'random'"),
        ({"balance": "never"}, "balance is 'never'"),
        ({"balance_weight": -1}, "balance_weight is -1; expected at least 0"),
        ({"ssm": "self_attn"}, "grid_width is 6; expected a multiple of 8"),
        ({"expert_width": 0}, "expert_width is 0; expected at least 1"),
        ({"ssm": "rnn"}, "ssm is 'rnn'"),
    ],
)
def test_a_bad_configuration_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        make_routed_config(**change)


def test_a_configuration_of_another_layer_is_refused():
    with pytest.raises(TypeError, match="config is of type CMMConfig; expected a RoutedConfig"):
        Routed(make_config())
    with pytest.raises(TypeError, match="residual is 1; expected True or False"):
        make_routed_config(residual=1)
    with pytest.raises(ValueError, match="ssm is 'self_attn'"):
        make_config(ssm="self_attn")


def test_self_attention_sees_kept_patches_alone():
    connector = original(grid_positions=False)
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 3:], mask[1] = False, False
    y = connector(some_text(width=24), VECTORS["z"], None, mask)
    alone = connector(some_text(1, width=24), VECTORS["z"][:1, :3])
    assert_close(y[0, :3], alone[0, :3], relative=1e-12)
    assert (y[0, 3:5] == 0).all()
    assert (y[1, :5] == 0).all()


def test_pieces_and_steps_after_the_patches_are_in():
    connector = small()
    text, patches = some_text(2, 7), some_patches(N=5)
    found, _ = run_in_pieces(connector, text, patches, [2, 3], 2)
    assert_close(found, connector(text, patches), relative=1e-14)


def test_the_liquid_block_mixes_patches_too():
    connector = small(ssm="liquid")
    assert type(connector.ssm).__name__ == "LiquidS4"
    assert torch.isfinite(connector(some_text(), some_patches(N=5))).all()
