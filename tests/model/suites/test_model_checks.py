"""What transformers asks of a model (its ModelTesterMixin), for both models; `make test-suites` makes a table of it.

Names are theirs. A model's own tests are beside these folders; here stands only what every model has to do alike.
"""

import copy
import inspect
import json

import pytest
import torch
from numerics import assert_close
from safetensors.torch import load_file, save_file
from suite_subjects import FOVEATED
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model
from transformers.modeling_layers import GradientCheckpointingLayer

from firebolt_vl.model.compat import CACHE

# Both sides are float32: a few hundred operations apart, never more than this.
ROUNDING = 2e-5


@torch.no_grad()
def logits_of(model, inputs, **given):
    return model(**inputs, **given).logits


def assert_same_logits(one, other, inputs) -> None:
    """At every column but padding, where there is nothing to be right about."""
    kept = inputs["attention_mask"].bool()
    assert_close(logits_of(one, inputs)[kept], logits_of(other, inputs)[kept], relative=ROUNDING)


def test_forward_signature(subject):
    names = list(inspect.signature(subject.model_class.forward).parameters)
    assert names[1:3] == ["input_ids", "attention_mask"]
    assert {"past_key_values", "inputs_embeds", "labels", "use_cache", "logits_to_keep"} <= set(names)


def test_model_main_input_name(subject):
    assert subject.model_class.main_input_name in inspect.signature(subject.model_class.forward).parameters


def test_model_get_set_embeddings(subject):
    model = subject.make()
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    new = nn.Embedding(10, model.get_input_embeddings().embedding_dim)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert isinstance(model.get_output_embeddings(), nn.Linear)


def test_init_from_config(subject):
    """The same seed gives the same weights, all of them finite, by either way to make a model."""
    models = []
    for make in (subject.model_class, AutoModelForImageTextToText.from_config):
        torch.manual_seed(5)
        models.append(make(subject.config()))
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters()):
        assert torch.equal(one, two), name
        assert one.isfinite().all(), name


def test_can_be_initialized_on_meta(subject):
    with torch.device("meta"):
        model = subject.model_class(subject.config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_all_tensors_are_parameter_or_buffer(subject, model):
    """A tensor that is neither would stay behind when the model moves."""
    kept = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        loose = [
            key for key, value in vars(module).items() if isinstance(value, torch.Tensor) and id(value) not in kept
        ]
        assert not loose, (name, loose)


def test_determinism(subject, model):
    assert torch.equal(logits_of(model, subject.inputs()), logits_of(model, subject.inputs()))


def test_batching_equivalence(subject, model):
    inputs = subject.inputs(rows=3)
    together = logits_of(model, inputs)
    for row in range(3):
        alone = logits_of(model, {name: value[row : row + 1] for name, value in inputs.items()})
        assert_close(alone[0, -1], together[row, -1], relative=ROUNDING)


def test_left_padding_compatibility(subject, model):
    inputs = subject.inputs(rows=1)
    padded = {
        **inputs,
        "input_ids": nn.functional.pad(inputs["input_ids"], (4, 0)),
        "attention_mask": nn.functional.pad(inputs["attention_mask"], (4, 0)),
    }
    assert_close(logits_of(model, padded)[:, -1], logits_of(model, inputs)[:, -1], relative=ROUNDING)


def test_inputs_embeds_matches_input_ids(subject, model):
    inputs = subject.inputs()
    wanted = logits_of(model, inputs)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    assert torch.equal(logits_of(model, inputs), wanted)


def test_model_outputs_equivalence(subject, model):
    """A tuple holds what the output's fields do, in their order."""
    inputs = subject.inputs()
    with torch.no_grad():
        named, plain = model(**inputs, use_cache=False), model(**inputs, use_cache=False, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == len(named.to_tuple())
    for one, other in zip(plain, named.to_tuple()):
        assert not isinstance(one, torch.Tensor) or torch.equal(one, other)


def test_hidden_states_output(subject, model):
    inputs = subject.inputs()
    layers = model.config.text_config.num_hidden_layers
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert len(hidden) == layers + 1
    assert {state.shape[-1] for state in hidden} == {model.config.text_config.hidden_size}


def test_attention_outputs(subject):
    """By the argument and by the configuration; one of each layer that attends, rows that sum to one."""
    config = subject.config()
    config._attn_implementation = "eager"
    model = subject.model_class(config).eval()
    inputs = subject.inputs(rows=1)
    with torch.no_grad():
        by_argument = model(**inputs, output_attentions=True).attentions
        config.text_config.output_attentions = model.config.output_attentions = True
        by_config = model(**inputs).attentions
    kinds = (
        getattr(config.text_config, "layer_types", None) or ["full_attention"] * config.text_config.num_hidden_layers
    )
    for attentions in (by_argument, by_config):
        assert len(attentions) == kinds.count("full_attention")
        for weights in attentions:
            assert weights.shape[1] == config.text_config.num_attention_heads
            assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), relative=1e-5)


def test_retain_grad_hidden_states_attentions(subject):
    config = subject.config()
    config._attn_implementation = "eager"
    model = subject.model_class(config)
    outputs = model(**subject.inputs(), output_hidden_states=True, output_attentions=True, use_cache=False)
    kept = outputs.hidden_states[0], outputs.attentions[0]
    for tensor in kept:
        tensor.retain_grad()
    outputs.logits.flatten()[0].backward()
    assert all(tensor.grad is not None for tensor in kept)


def test_training(subject):
    model = subject.make().train()
    loss = model(**subject.labelled()).loss
    loss.backward()
    assert loss.isfinite()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # SigLIP's and DINOv2's own, which no pooled vector and no query of ours goes through.
    unused = ("vision_tower.head", "mask_token", "q_static", "q_init", "connector.positions")
    assert not [name for name in without if not any(part in name for part in unused)]


def test_training_overfit(subject):
    """One batch is learnt by heart, nearly."""
    torch.manual_seed(0)
    model = subject.make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, losses = subject.labelled(), []
    for _ in range(12):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_training_gradient_checkpointing(subject):
    """Gradients with checkpointing are those without; the layers are asked for it by transformers' own switch."""
    plain, saving = subject.make().train(), subject.make().train()
    saving.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert saving.is_activation_checkpointing
    for model in (plain, saving):
        torch.manual_seed(1)
        model(**subject.labelled(), use_cache=False).loss.backward()
    for (name, one), two in zip(plain.named_parameters(), saving.parameters()):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            assert_close(two.grad, one.grad, relative=1e-4)


def test_training_gradient_checkpointing_use_reentrant_true(subject):
    if subject is FOVEATED:
        pytest.skip("the patch pass runs DINOv2's layers in parts, block by block of frames, without re-entry always")
    model = subject.make().train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    model(**subject.labelled(), use_cache=False).loss.backward()
    assert any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


def test_gradient_checkpointing_enable_disable(subject):
    model = subject.make()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_enable_input_require_grads(subject):
    model = subject.make()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(**subject.inputs(), use_cache=False).logits.requires_grad
    model.disable_input_require_grads()


def test_peft_gradient_checkpointing(subject):
    """An adapter on a frozen model gets gradients through checkpoints."""
    peft = pytest.importorskip("peft")
    model = subject.make().train()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    adapted(**subject.labelled(), use_cache=False).loss.backward()
    grads = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name and "vision" not in name]
    assert grads
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_save_load(subject, model, saved):
    again = subject.model_class.from_pretrained(saved).eval()
    assert_same_logits(again, model, subject.inputs())
    assert again.generation_config.to_dict() == model.generation_config.to_dict()


def test_save_load_by_auto_class(subject, model, saved):
    again = AutoModelForImageTextToText.from_pretrained(saved)
    assert type(again) is subject.model_class
    assert type(AutoConfig.from_pretrained(saved)) is subject.config_class


def test_torch_save_load(subject, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = subject.model_class(model.config).eval()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same_logits(again, model, subject.inputs())


def test_save_load_in_shards(subject, model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = subject.model_class.from_pretrained(tmp_path).eval()
    assert_same_logits(again, model, subject.inputs())


def test_load_contiguous_weights(subject, saved):
    model = subject.model_class.from_pretrained(saved)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("way", ["low_cpu_mem_usage", "device_map"])
def test_low_cpu_mem(subject, model, saved, way):
    given = {"low_cpu_mem_usage": True} if way == "low_cpu_mem_usage" else {"device_map": "cpu"}
    again = subject.model_class.from_pretrained(saved, **given).eval()
    assert_same_logits(again, model, subject.inputs())


@pytest.mark.parametrize("given", [{"dtype": "auto"}, {"dtype": torch.bfloat16}, {"torch_dtype": torch.float16}])
def test_load_in_dtype(subject, saved, given):
    wanted = {"auto": torch.float32}.get(*given.values(), *given.values())
    assert subject.model_class.from_pretrained(saved, **given).dtype == wanted


def test_keep_in_fp32_modules(subject, model, saved):
    kept = model._keep_in_fp32_modules_strict
    if not kept:
        pytest.skip("no parameter of it needs more than the checkpoint's dtype")
    model = subject.model_class.from_pretrained(saved, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        wide = any(part in name for part in kept)
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
    assert any(any(part in name for part in kept) for name, _ in model.named_parameters())


def test_from_pretrained_output_flags(subject, saved):
    """Arguments that the configuration takes go to it; others are refused."""
    model = subject.model_class.from_pretrained(saved, output_attentions=True, attn_implementation="eager")
    assert model.config.output_attentions
    assert subject.model_class.from_pretrained(saved, output_hidden_states=True).config.output_hidden_states
    with pytest.raises(TypeError, match="nonsense"):
        subject.model_class.from_pretrained(saved, nonsense=1)


def test_from_pretrained_with_config(subject, saved):
    """As an object, or as the folder of one."""
    config = subject.config_class.from_pretrained(saved)
    config.note = "ours"
    assert subject.model_class.from_pretrained(saved, config=config).config.note == "ours"
    assert subject.model_class.from_pretrained(saved, config=str(saved)).config.model_type == config.model_type


def test_correct_missing_keys(subject, saved):
    """What a checkpoint lacks is named and made anew; what it has beyond the model is named."""
    state = load_file(saved / "model.safetensors")
    gone = next(name for name in state if name.endswith("k_proj.weight"))
    state.pop(gone)
    save_file({**state, "stranger": torch.zeros(2)}, saved / "model.safetensors", metadata={"format": "pt"})
    model, told = subject.model_class.from_pretrained(saved, output_loading_info=True)
    assert len(told["missing_keys"]) == 1
    assert told["unexpected_keys"] == {"stranger"} or list(told["unexpected_keys"]) == ["stranger"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_load_with_mismatched_shapes(subject, saved):
    described = json.loads((saved / "config.json").read_text())
    described["text_config"]["vocab_size"] = 250
    (saved / "config.json").write_text(json.dumps(described))
    with pytest.raises((RuntimeError, ValueError, OSError), match=r"mismatch|shape"):
        subject.model_class.from_pretrained(saved)
    model = subject.model_class.from_pretrained(saved, ignore_mismatched_sizes=True)
    assert model.get_input_embeddings().num_embeddings == 250


def test_model_weights_reload_no_missing_tied_weights(subject, saved):
    """Theirs loads a file with a placeholder alone."""
    save_file({"placeholder": torch.zeros(2)}, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="do not belong together"):
        subject.model_class.from_pretrained(saved)
    pytest.skip("a configuration whose sizes the weights do not have is refused before anything is built of it")


def test_tied_weights_keys(subject, saved):
    """One tensor stands for both in memory, and in a file."""
    model = subject.model_class.from_pretrained(saved)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not [name for name in load_file(saved / "model.safetensors") if "lm_head" in name]


def test_load_save_without_tied_weights(subject, tmp_path):
    config = subject.config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = subject.model_class(config).eval()
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = subject.model_class.from_pretrained(tmp_path).eval()
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert_same_logits(again, model, subject.inputs())


def test_resize_tokens_embeddings(subject):
    model = subject.make()
    before = logits_of(model, subject.inputs())
    model.resize_token_embeddings(280)
    assert model.config.text_config.vocab_size == 280
    after = logits_of(model, subject.inputs())
    assert after.shape[-1] == 280
    assert_close(after[..., :260], before, relative=ROUNDING)
    assert model(**subject.labelled()).loss.isfinite()
    model.resize_token_embeddings(200)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.shape[0] == 200


def test_resize_embeddings_untied(subject):
    config = subject.config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = subject.model_class(config)
    model.resize_token_embeddings(270)
    assert model.get_output_embeddings().weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 270
    assert model(**subject.inputs(), use_cache=False).logits.shape[-1] == 270


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_matches_sdpa_inference(subject, saved, side, dtype):
    outputs = []
    inputs = subject.inputs()
    if side == "right":
        for name in ("input_ids", "attention_mask"):
            inputs[name][1] = inputs[name][1].roll(-1)
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    for implementation in ("eager", "sdpa"):
        model = subject.model_class.from_pretrained(saved, attn_implementation=implementation, dtype=dtype).eval()
        assert model.config._attn_implementation == implementation
        outputs.append(logits_of(model, inputs)[inputs["attention_mask"].bool()].float())
    # bfloat16 rounds to 2^-9, a few dozen times from pixels to logits.
    assert_close(outputs[0], outputs[1], relative=ROUNDING if dtype == torch.float32 else 32 * 2**-9)


def test_can_set_attention_dynamically(subject):
    model = subject.make()
    model.set_attn_implementation("eager")
    inner = {m.config._attn_implementation for m in model.modules() if isinstance(m, PreTrainedModel)}
    assert inner == {"eager"}
    assert_same_logits(model, subject.make(), subject.inputs())


def test_attn_implementation_composite_models(subject):
    """One name for all parts, or one for each."""
    config = subject.config()
    config._attn_implementation = {"text_config": "eager", "vision_config": "sdpa"}
    model = subject.model_class(config)
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_config_round_trip(subject, tmp_path):
    config = subject.config()
    config.save_pretrained(tmp_path)
    again = subject.config_class.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert subject.config_class.from_dict(json.loads(config.to_json_string())).to_dict() == again.to_dict()


def test_config_can_be_init_without_params(subject):
    assert subject.config_class().model_type == subject.config().model_type


def test_internal_model_config_and_subconfig_are_same(subject, model):
    parts = {id(m.config) for m in model.modules() if isinstance(m, PreTrainedModel)}
    known = {id(model.config), id(model.config.text_config), id(model.config.vision_config)}
    assert parts <= known


def test_sdpa_can_dispatch_composite_models(subject, model):
    inner = {m.config._attn_implementation for m in model.modules() if isinstance(m, PreTrainedModel)}
    assert inner == {"sdpa"}


def test_causal_lm_can_accept_kwargs(subject, model):
    """`num_items_in_batch`, as the Trainer passes it: the loss is a sum over so many tokens."""
    inputs = subject.labelled()
    counted = int((inputs["labels"] != -100).sum())
    with torch.no_grad():
        mean, share = model(**inputs).loss, model(**inputs, num_items_in_batch=2 * counted).loss
    assert_close(2 * share, mean, relative=ROUNDING)


def test_torch_export(subject):
    """A prompt with its image in one graph, and the cache that it leaves; the step after it in another."""
    register_cache_pytrees_for_model(model := subject.make())
    inputs = {**subject.inputs(), "use_cache": True}
    mask = nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with torch.no_grad():
        wanted, found = model(**inputs), torch.export.export(model, (), inputs).module()(**inputs)
        assert_close(found.logits[:, -1], wanted.logits[:, -1], relative=ROUNDING)
        steps = [
            {"input_ids": torch.tensor([[9], [11]]), "attention_mask": mask, "past_key_values": out[CACHE]}
            for out in (found, wanted)
        ]
        step = torch.export.export(model, (), steps[0]).module()
        assert_close(step(**steps[0]).logits, model(**steps[1]).logits, relative=ROUNDING)


@pytest.mark.parametrize(
    "reason",
    [
        "flash_attn: its kernels need a GPU, and a package that is not installed here",
        "deepspeed, tensor and expert parallelism: need several devices",
        "accelerator only (offload to disk and CPU, model parallelism): no GPU here",
        "feed_forward_chunking, problem_types, moe, encoder-decoder, sliding window: neither model has such parts",
        "resize_position_vector_embeddings: positions are rotary, or interpolated from those of the checkpoint",
    ],
    ids=lambda reason: reason.partition(":")[0],
)
def test_not_here(reason):
    pytest.skip(reason)
