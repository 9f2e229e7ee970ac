"""The model as users of transformers know one: losses, masks, dtypes, files, Auto classes and the pipeline."""

import logging

import pytest
import tiny_models
import torch
from numerics import assert_close
from PIL import Image
from tiny_models import make_config, make_model, make_pixels, make_text
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

from firebolt_vl.model import (
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltProcessor,
    FoveatedVLMConfig,
)
from firebolt_vl.model.firebolt.image_processing_firebolt import FireboltImageProcessor

kinds = pytest.mark.parametrize(
    ("connector", "fusion"),
    [
        *(("cmm", "replace"), ("cmm", "concat"), ("cmm", "pool")),
        *(("prepend", "replace"), ("cross_attend", "replace"), ("routed", "replace")),
    ],
)


def batch(rows: int = 3) -> dict[str, torch.Tensor]:
    inputs = {**make_text([7, 5, 9][:rows]), **make_pixels(rows)}
    inputs["image_mask"][1] = False
    return inputs


def labelled(inputs: dict, answer: int = 3) -> torch.Tensor:
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -answer:] = inputs["input_ids"][:, -answer:]
    return labels


@kinds
def test_loss_is_the_mean_over_answer_tokens(connector, fusion):
    model, inputs = make_model(connector, fusion), batch()
    labels = labelled(inputs)
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
    chances = outputs.logits[:, :-1].log_softmax(-1)
    scored = labels[:, 1:] != -100
    wanted = -chances.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0][scored].mean()
    assert_close(outputs.loss, wanted, relative=1e-5)


@pytest.mark.parametrize("fusion", ["concat", "pool"])
def test_answer_tokens_never_reach_the_question(fusion):
    """In these fusions the modulated question must not change with the answer that is being scored."""
    model, inputs = make_model("cmm", fusion), batch()
    labels = labelled(inputs)
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, -1] = 77
    with torch.no_grad():
        first = model(**inputs, labels=labels).logits
        second = model(**other, labels=labels).logits
    kept = inputs["attention_mask"].bool()
    kept[:, -1] = False
    assert torch.equal(first[kept], second[kept])


@kinds
def test_a_change_at_a_column_leaves_the_columns_before_it(connector, fusion):
    model, inputs = make_model(connector, fusion), batch()
    prompt = inputs["attention_mask"].bool()
    prompt[:, 4:] = False
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, 6:] = 99
    with torch.no_grad():
        first = model(**inputs, prompt_mask=prompt).logits
        second = model(**other, prompt_mask=prompt).logits
    kept = inputs["attention_mask"].bool()
    assert_close(first[:, :6][kept[:, :6]], second[:, :6][kept[:, :6]], relative=1e-5)
    assert not torch.allclose(first[:, 6:], second[:, 6:], atol=1e-3)


@kinds
def test_gradient_checkpointing_gives_the_same_gradients(connector, fusion):
    model, inputs = make_model(connector, fusion).train(), batch()
    labels = labelled(inputs)
    model(**inputs, labels=labels).loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(**inputs, labels=labels).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name], relative=1e-5, absolute=1e-8)


@kinds
def test_every_parameter_of_the_model_learns(connector, fusion):
    """With two images in a row: with one, the linear map of the image's number multiplies zeros."""
    model, inputs = make_model(connector, fusion).train(), {**make_text([7, 5, 9]), **make_pixels(3, images=2)}
    model(**inputs, labels=labelled(inputs)).loss.backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_run_and_keep_their_ssm_in_float32(connector, fusion, dtype, tmp_path):
    model, inputs = make_model(connector, fusion), batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = FireboltForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    cast = make_model(connector, fusion).to(dtype)
    exact = dict(model.model.connector.named_parameters())
    narrow = {"ssm." not in name for name, p in loaded.model.connector.named_parameters() if p.dtype == dtype}
    for half in (loaded, cast):
        for name, parameter in half.model.connector.named_parameters():
            if parameter.dtype == torch.float32:
                assert torch.equal(parameter, exact[name]), f"{name} was rounded on the way"
        kernels = [n for n, p in half.model.connector.named_parameters() if ".kernel." in n and p.dtype == dtype]
        assert kernels == []
        with torch.no_grad():
            found = half(**inputs).logits
        assert found.dtype == dtype
        assert torch.isfinite(found).all()
        assert_close(found.float(), wanted, relative=0.2 if dtype == torch.bfloat16 else 0.03)
    assert narrow, "nothing of the connector is in half precision"


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_round_trip(connector, fusion, dtype, tmp_path):
    make_model(connector, fusion).save_pretrained(tmp_path / "first")
    model, inputs = FireboltForConditionalGeneration.from_pretrained(tmp_path / "first", dtype=dtype).eval(), batch()
    model.save_pretrained(tmp_path / "second")
    files = sorted(p.name for p in (tmp_path / "second").iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "second", dtype="auto").eval()
    assert type(loaded) is FireboltForConditionalGeneration
    assert loaded.dtype == dtype
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_missing_parameters_are_initialised_and_present_ones_kept(tmp_path):
    from safetensors.torch import load_file, save_file

    model = make_model()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    dropped = [name for name in state if "film" in name]
    assert dropped
    save_file({k: v for k, v in state.items() if k not in dropped}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = FireboltForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(dropped)
    for name, parameter in loaded.state_dict().items():
        assert torch.isfinite(parameter).all(), name
        if name in state and name not in dropped:
            assert torch.equal(parameter, state[name]), name


def test_auto_config_round_trip(tmp_path):
    config = make_config("cmm", "concat", ssm="mamba", top_k_mode="truncate")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FireboltConfig
    assert loaded.cmm_config == config.cmm_config
    assert (loaded.connector, loaded.fusion) == ("cmm", "concat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"connector": "attention"}, "FireboltConfig: connector is 'attention'; expected one of cmm"),
        ({"fusion": "sum"}, "FireboltConfig: fusion is 'sum'; expected one of replace"),
        ({"connector": "prepend", "fusion": "pool"}, "fusion is 'pool' with connector 'prepend'; expected"),
        ({"text_width": 48}, "cmm_config.text_width is 48; expected 32, the backbone's hidden size"),
        ({"grid_width": 7}, "cmm_config.grid_width is 7; expected"),
        ({"topk": 3}, "cmm_config has the unknown keys topk; expected some of .*; did you mean top_k"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_config(**arguments)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("kind", [FireboltConfig, FoveatedVLMConfig])
def test_the_part_that_has_a_value_of_the_wrong_type_is_named(kind, part):
    """Both backbones have a hidden size."""
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {part}: .*hidden_size.* int.*'wide'"):
        kind(**{part: {"hidden_size": "wide"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel_values": torch.zeros(3, 3, 32)},
            r"pixel_values has shape \[3, 3, 32\]; expected \[B,3,S,S\]",
        ),
        ({"tile_mask": torch.ones(3, 7)}, r"FireboltModel: tile_mask has shape \[3, 1, 7\]"),
        ({"grid_boxes": torch.ones(3, 2, 4)}, r"grid_boxes has shape \[3, 1, 2, 4\]"),
        ({"attention_mask": torch.ones(3, 4)}, r"FireboltModel: attention_mask has shape \[3, 4\]; expected \[3, 9\]"),
        ({"grids": torch.zeros(3, 5, 24)}, "pixel_values and grids are both given"),
        ({"labels": torch.zeros(3, 2, dtype=torch.long)}, r"labels has shape \[3, 2\]; expected that of the text"),
        ({"prompt_mask": torch.ones(2, 9)}, r"prompt_mask has shape \[2, 9\]; expected \[3, T\]"),
        ({"inputs_embeds": torch.zeros(3, 9, 32)}, "FireboltModel: input_ids and inputs_embeds are both given"),
    ],
)
def test_wrong_shapes_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{**batch(), **change})


def test_from_backbones_takes_trained_parts_from_local_folders(tmp_path):
    donor = make_model(seed=3)
    from transformers import Lfm2ForCausalLM

    decoder = Lfm2ForCausalLM(donor.config.text_config)
    decoder.model.load_state_dict(donor.model.language_model.state_dict())
    decoder.save_pretrained(tmp_path / "decoder")
    donor.model.vision_tower.save_pretrained(tmp_path / "vision")
    model = FireboltForConditionalGeneration.from_backbones(
        str(tmp_path / "decoder"), str(tmp_path / "vision"), cmm_config={"heads": 2, "head_dim": 8}
    )
    for part in ("language_model", "vision_tower"):
        wanted = getattr(donor.model, part).state_dict()
        for name, tensor in getattr(model.model, part).state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
    assert torch.equal(model.lm_head.weight, donor.get_input_embeddings().weight)
    assert model.config.connector_config().heads == 2


def test_trainer_trains_it(tmp_path):
    from transformers import Trainer, TrainingArguments

    model, inputs = make_model().train(), batch()
    rows = [{name: tensor[row] for name, tensor in inputs.items()} for row in range(3)]
    for row, labels in zip(rows, labelled(inputs)):
        row["labels"] = labels
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=3, report_to=[], use_cpu=True, save_strategy="no"
    )
    result = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert 0 < result.training_loss < 20
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert any("connector" in name for name in moved)
    assert any("vision_tower" in name for name in moved)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model().save_pretrained(folder)
    images = FireboltImageProcessor(size={"height": 32, "width": 32}, tile_size=16)
    FireboltProcessor(images, tiny_models.make_tokenizer()).save_pretrained(folder)
    return folder


def test_processor_inputs_fit_the_model(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    red, wide = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (90, 30), "blue")
    inputs = processor(
        images=[red, None, [red, wide]], text=["what?", "no image", "two"], padding=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=3).shape == (3, inputs["input_ids"].shape[1] + 3)


def test_pipeline_answers_without_complaint(checkpoint, caplog):
    from firebolt_vl.model.firebolt.processing_firebolt import CHAT_TEMPLATE

    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.chat_template = CHAT_TEMPLATE
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        logging.getLogger("transformers").propagate = True
        ask = pipeline("image-text-to-text", model=model, processor=processor)
        image = Image.new("RGB", (40, 40), "red")
        content = [{"type": "image", "image": image}, {"type": "text", "text": "what colour?"}]
        answer = ask([{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
    assert not [record for record in caplog.records if "not supported" in record.getMessage()]


class TestCallsOfTheBaseModel:
    """As trl makes them: the model without its head, and without labels."""

    @pytest.mark.parametrize("fusion", ["concat", "pool"])
    def test_no_answer_is_taken_for_the_prompt(self, fusion):
        model, inputs = make_model(fusion=fusion), {**make_text([7, 5]), **make_pixels(2)}
        with pytest.raises(ValueError, match=f"prompt_mask is not given with fusion '{fusion}' and"):
            model.model(**inputs)
        labels = inputs["input_ids"].clone()
        labels[:, :5] = -100
        with torch.no_grad():
            wanted = model(**inputs, labels=labels).logits
            hidden = model.model(**inputs, prompt_mask=(labels == -100)).last_hidden_state
            assert torch.equal(model.lm_head(hidden), wanted)
            # Without an answer all of the text is the prompt.
            asked = torch.ones_like(labels)
            assert torch.equal(model(**inputs).logits, model(**inputs, prompt_mask=asked).logits)

    def test_other_fusions_need_no_mask(self):
        for connector in ("cmm", "prepend", "cross_attend"):
            model, inputs = make_model(connector), {**make_text([7, 5]), **make_pixels(2)}
            with torch.no_grad():
                assert torch.equal(model.lm_head(model.model(**inputs).last_hidden_state), model(**inputs).logits)


@pytest.mark.parametrize(("connector", "kept"), [("cmm", {"ssm.kernel"}), ("prepend", set()), ("cross_attend", set())])
def test_what_stays_in_float32_is_there(connector, kept):
    model = make_model(connector)
    assert set(model._keep_in_fp32_modules_strict) == kept
    assert all(any(name in parameter for parameter, _ in model.named_parameters()) for name in kept)


def test_flex_attention_is_refused():
    with pytest.raises(ValueError, match="flex_attention"):
        make_model().set_attn_implementation("flex_attention")
