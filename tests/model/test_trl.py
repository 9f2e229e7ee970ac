"""trl's trainers, as they are, on the embedded model: what they score is what was sampled, whatever the batch."""

import copy

import numpy as np
import pytest
import torch
import transformers
from foveated import make_foveated, make_processor
from PIL import Image

import firebolt_vl
from firebolt_vl.bench.budget import distance, floor
from firebolt_vl.model import (
    FireboltForConditionalGeneration,
    FireboltForSequenceClassification,
    FireboltProcessor,
    FoveatedProcessor,
    FoveatedVLM,
)

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

FOLDER = str(firebolt_vl.embedded_checkpoint())
ROWS = [("top left", 1), ("the bottom, or anywhere else", 2), ("nothing", 0), ("top", 1)]
# Prompts that differ in length, with one, two and no images, so that no batch is even.
QUESTIONS = [[{"role": "user", "content": f"which digit is at {where}?"}] for where, _ in ROWS]


def pictures(count: int, seed: int) -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(20, 100, (count, 2))
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


NEVER = "never sampled, but rejected"
# Rows of a batch that were not sampled.
REJECTED = {"SFT": 0, "conversations": 0, "DPO": len(ROWS)}
IMAGES = [pictures(count, seed) for seed, (_, count) in enumerate(ROWS)]


@pytest.fixture(scope="module")
def processor():
    return FireboltProcessor.from_pretrained(FOLDER, packed=True)


@pytest.fixture
def model():
    return FireboltForConditionalGeneration.from_pretrained(FOLDER)


def arguments(kind, folder, **options):
    return kind(
        output_dir=str(folder),
        **{"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 4, **options},
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


class Sampled:
    """Answers that a model samples: by the tokens of a whole row the answer's log-probabilities, and all its logits."""

    def __init__(self, model, temperature: float = 1.0):
        self.temperature = temperature  # at which they will be scored
        self.found: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self.answers: list[list[int]] = []
        self.model = model

    def generate(self, *args, **kwargs):
        kind, ends = type(self.model), torch.tensor(self.model.generation_config.eos_token_id)
        out = kind.generate(self.model, *args, **kwargs, return_dict_in_generate=True, output_logits=True)
        prompts, mask = kwargs["input_ids"], kwargs["attention_mask"].bool()
        answers = out.sequences[:, prompts.shape[1] :]
        logits = torch.stack(out.logits, dim=1) / self.temperature
        chances = logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]
        self.answers = []
        for row, (prompt, kept, answer) in enumerate(zip(prompts, mask, answers)):
            ended = torch.isin(answer, ends).nonzero().flatten()
            length = int(ended[0]) + 1 if len(ended) else len(answer)
            self.answers.append(answer[:length].tolist())
            self.found[*prompt[kept].tolist(), *self.answers[-1]] = chances[row, :length], logits[row, :length]
        return out.sequences


class Scored:
    """What a trainer's model says of each row of a call with trl's own head, beside what was sampled so far."""

    def __init__(self, model, sampled: Sampled):
        self.sampled = sampled
        self.calls: list[list[tuple[list[int], torch.Tensor, dict]]] = []
        model.register_forward_hook(self._called, with_kwargs=True)

    def _called(self, model, args, kwargs, output):
        if getattr(output, "log_probs", None) is None or not torch.is_grad_enabled():
            return  # not a score that is trained on, but, say, the reference's: this model without its adapters
        given = kwargs["input_ids"], kwargs["attention_mask"].bool(), kwargs["labels"][:, 1:] != -100
        rows = zip(*given, output.log_probs.detach())
        found = dict(self.sampled.found)
        self.calls.append([(ids[mask].tolist(), chances[counts], found) for ids, mask, counts, chances in rows])

    def assert_as_sampled(self, calls: int, others: int = 0) -> None:
        """All rows but so many begin with one that was sampled, and its scores are those of generation to rounding."""
        assert len(self.calls) >= calls
        found = 0
        rows = [row for call in self.calls[:calls] for row in call]
        for ids, chances, sampled in rows:
            begun = [key for key in sampled if tuple(ids[: len(key)]) == key]
            if not begun:
                continue
            found += 1
            wanted, logits = sampled[max(begun, key=len)]
            # trl's head subtracts numbers as large as the logits in float32, in which it rounds.
            error = distance(chances[: len(wanted)], wanted)
            assert error <= floor(torch.float32, logits, logits.shape[-1]), error
        assert found == len(rows) - others


def answered(model, processor, **options) -> tuple[list[str], Sampled]:
    """An answer to each question, sampled in one batch."""
    sampled = Sampled(model)
    text = [processor.apply_chat_template(question, add_generation_prompt=True) for question in QUESTIONS]
    inputs = processor(images=IMAGES, text=text, padding=True, return_tensors="pt", add_special_tokens=False)
    sampled.generate(**inputs, do_sample=True, temperature=2.0, max_new_tokens=8, **options)
    ends = processor.tokenizer.eos_token_id
    answers = [[token for token in answer if token != ends] for answer in sampled.answers]
    return [processor.tokenizer.decode(answer) for answer in answers], sampled


def sums(completion_ids, **_):
    return [float(sum(ids)) for ids in completion_ids]


def reinforced(name, folder, model, processor, peft_config=None, images=IMAGES, **settings):
    rows = datasets.Dataset.from_dict({"prompt": QUESTIONS, "images": images})
    settings = {"num_generations": 2, "max_completion_length": 6, "steps_per_generation": 1, **settings}
    return getattr(trl, f"{name}Trainer")(
        model=model,
        reward_funcs=sums,
        args=arguments(getattr(trl, f"{name}Config"), folder, **settings),
        train_dataset=rows,
        processing_class=processor,
        peft_config=peft_config,
    )


def adapters():
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "in_proj"], init_lora_weights=False)


def with_adapters(model):
    """The model with adapters in it that change what it says."""
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, adapters())


@pytest.mark.parametrize(("name", "adapted"), [("GRPO", False), ("GRPO", True), ("RLOO", False)])
def test_three_steps_with_rewards(name, adapted, tmp_path, model, processor):
    """In float64, each step samples and scores anew; beside a reference model, which trl finds by its class's name."""
    model.double()
    sampled = Sampled(model, temperature=8.0)  # at which this model's answers differ
    scored = Scored(model, sampled)
    model.generate = sampled.generate
    before = copy.deepcopy(model.state_dict())
    trainer = reinforced(name, tmp_path, model, processor, adapters() if adapted else None, beta=0.1, temperature=8.0)
    trainer.train()
    scored.assert_as_sampled(calls=3)
    assert_trained(trainer, before, *([()] if adapted else []))
    assert adapted or type(trainer.ref_model) is type(model)


def test_no_global_view_alone_is_trained_on(tmp_path, model):
    """Of inputs that are not packed GRPO drops the tiles: that is an error and not another model."""
    separate, images = FireboltProcessor.from_pretrained(FOLDER), [pictures(1, seed) for seed in range(4)]
    trainer = reinforced("GRPO", tmp_path, model, separate, images=images)
    with pytest.raises(ValueError, match=r"let the image processor put them all there \(packed=True\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("kind", "adapted"),
    [("SFT", False), ("SFT", True), ("conversations", False), ("DPO", False), ("DPO", True)],
)
def test_three_steps_with_answers(kind, adapted, tmp_path, model, processor):
    """In float64, on answers that were sampled in another batch, with padding on the other side."""
    model.double()
    learns = with_adapters(model) if adapted else model
    texts, sampled = answered(model, processor)
    scored = Scored(model, sampled)
    before = copy.deepcopy(learns.state_dict())
    trainer = supervised(kind, tmp_path, learns, processor, texts)
    trainer.train()
    scored.assert_as_sampled(calls=1, others=REJECTED[kind])
    assert_trained(trainer, before, *([("lora_A", "lora_B")] if adapted else []))


def assert_trained(trainer, before, parts=("vision_tower", "connector", "language_model")):
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    after = trainer.model.state_dict()
    changed = [name for name in before if parts and not torch.equal(before[name], after[name])]
    assert all(any(part in name.split(".") for name in changed) for part in parts)


def supervised(kind, folder, model, processor, texts, **settings):
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {
        "SFT": {"prompt": QUESTIONS, "completion": answers},
        "conversations": {"messages": [question + answer for question, answer in zip(QUESTIONS, answers)]},
        "DPO": {"prompt": QUESTIONS, "chosen": answers, "rejected": [[{"role": "assistant", "content": NEVER}]] * 4},
    }[kind]
    settings |= {"assistant_only_loss": True} if kind == "conversations" else {}
    name = "DPO" if kind == "DPO" else "SFT"
    return getattr(trl, f"{name}Trainer")(
        model=model,
        args=arguments(getattr(trl, f"{name}Config"), folder, **settings),
        train_dataset=datasets.Dataset.from_dict({**columns, "images": IMAGES}),
        processing_class=processor,
    )


@pytest.fixture(scope="module")
def foveated_folder(tmp_path_factory):
    """A small foveated model with random weights, and the processor of packed images."""
    folder = tmp_path_factory.mktemp("foveated")
    make_foveated(mode="coarse_fine").save_pretrained(folder)
    make_processor(packed=True).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["GRPO", "DPO"])
def test_the_foveated_model_too(name, tmp_path, foveated_folder):
    model = FoveatedVLM.from_pretrained(foveated_folder, dtype=torch.float64)
    processor = FoveatedProcessor.from_pretrained(foveated_folder)
    before = copy.deepcopy(model.state_dict())
    if name == "GRPO":
        sampled = Sampled(model)
        model.generate = sampled.generate
        trainer = reinforced(name, tmp_path, model, processor, beta=0.1)
    else:
        # Of all bytes only letters, of which texts can be made.
        others = [token for token in range(260) if not processor.tokenizer.decode([token]).isalpha()]
        texts, sampled = answered(model, processor, suppress_tokens=others)
        trainer = supervised(name, tmp_path, model, processor, texts)
    scored = Scored(model, sampled)
    trainer.train()
    scored.assert_as_sampled(calls=3 if name == "GRPO" else 1, others=REJECTED.get(name, 0))
    assert_trained(trainer, before, ("dino", "llm", "q_static", "llm_to_query"))


def test_three_steps_of_a_reward_model(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    said = [[{"role": "assistant", "content": text}] for text in ("one", "two", "three", NEVER)]
    rows = {"prompt": QUESTIONS, "chosen": said, "rejected": said[::-1]}
    trainer = trl.RewardTrainer(
        model=FOLDER,
        args=arguments(trl.RewardConfig, tmp_path),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    assert type(trainer.model) is FireboltForSequenceClassification
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert_trained(trainer, before, ("score", "language_model"))
