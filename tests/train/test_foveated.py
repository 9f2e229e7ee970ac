"""Groups, rates and preferences of the foveated model's training: the original's, but for its slip."""

import copy

import pytest
import torch
from foveated import DESCRIBED, VECTORS, largest_part, make_foveated, make_frames, original_model
from numerics import largest
from tiny_models import make_text

from firebolt_vl.model.foveated.original import convert_key
from firebolt_vl.train.foveated import parameter_groups, preference_step, rate


def test_groups_are_the_originals_with_the_output_projection_where_it_belongs():
    model = original_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group: {names[id(p)] for p in parameters} for group, parameters in parameter_groups(model).items()}
    wanted = {group: {convert_key(name) for name in its} for group, its in DESCRIBED["param_groups"].items()}
    moved = {"encoder.output_proj.weight", "encoder.output_proj.bias"}
    assert moved <= wanted["dino"]
    assert found == {
        "connector": wanted["connector"] | moved,
        "dino": wanted["dino"] - moved,
        "llm": wanted["llm"],
    }


@pytest.mark.parametrize("schedule", DESCRIBED["schedules"], ids=[one["kind"] for one in DESCRIBED["schedules"]])
def test_rates_are_the_originals(schedule):
    for group, base in enumerate(schedule["base_lr"]):
        end = {
            "cosine": base * schedule.get("min_lr_ratio", 0),
            "converging": schedule.get("target_lr"),
            "constant": base,
        }[schedule["kind"]]
        total = schedule.get("total", 1000)
        found = [rate(step, schedule["warmup"], total, base, end) for step in range(len(schedule["lr_per_step"]))]
        assert found == pytest.approx([rates[group] for rates in schedule["lr_per_step"]], rel=1e-12)


def test_the_preference_loss_is_the_originals():
    texts = VECTORS.under("in.dpo")
    chosen, rejected = (
        {name: texts[f"{kind}_{name}"] for name in ("input_ids", "attention_mask", "loss_mask")}
        for kind in ("chosen", "rejected")
    )
    model, reference = original_model("dpo"), original_model("dpo", reference=True)
    found = preference_step(model, reference, VECTORS["in.b2.frames"], chosen, rejected)
    wanted = VECTORS.under("out.dpo.dpo.f32")
    for name, tensor in zip(("loss", "chosen_reward", "rejected_reward"), found):
        assert largest(tensor - wanted[name]) < 2e-5 * largest_part(wanted)


def test_steps_of_preference_raise_the_chosen_answer_over_the_rejected_one():
    """From no preference at all, log 2, since the reference is the model itself; the reference stays as it was."""
    model = make_foveated()
    reference = copy.deepcopy(model)
    inputs = make_frames([3, 2])
    texts = []
    for seed in (1, 2):
        text = make_text([6, 6], seed)
        texts.append({**text, "loss_mask": (torch.arange(6) >= 2).long().expand(2, -1)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss, chosen, rejected = preference_step(model, reference, inputs["frames"], *texts, inputs["frame_mask"])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert (chosen > rejected).all()
    assert all(parameter.grad is None for parameter in reference.parameters())
