"""Training on conversations: the loss of the answers, over the whole batch of all processes."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..cmm.precision import WideParameters
from ..model import FireboltForConditionalGeneration, FireboltProcessor, Video, read_video
from .config import RowsConfig
from .data import BatchOrder, Collator, Conversations, PackedCollator, Problem
from .data.batches import MicroBatch, StepBatches
from .data.chat import IGNORED
from .errors import ConfigError
from .interrupts import ignore_interrupts, interrupts_held
from .loop import Job, agreed
from .models import IMAGE_TOKEN, choose_parts, part_modules, save_trained, start_model
from .optimizer import dense_matrices, make_optimizers, parameter_groups, set_learning_rates
from .run_config import EPOCHS, RunConfig
from .states import States

TEXT = ("input_ids", "attention_mask", "labels")
# As the original's chat template words them.
IMAGE_WORDS = f"{IMAGE_TOKEN}\n"


class AnswerLoss(nn.Module):
    """A model as a function from a micro-batch to the cross-entropy of its answer tokens, summed.

    That is `model(..., labels=...)`'s loss times their number, with logits at the answers alone; in training with the
    weighted balance of a connector's experts, if it has some. It is a module, so that what wraps modules (DDP, FSDP)
    sees every call.
    """

    def __init__(self, model: FireboltForConditionalGeneration, blank: dict[str, Tensor], bf16: bool):
        """`blank` is what the processor gives for one blank image."""
        super().__init__()
        self.model = model
        self.blank = blank
        self.bf16 = bf16
        self.balances: list[Tensor] | None = [] if model.model.connector.balances else None
        """Of each micro-batch since the last step: the balance, not weighted, times its answer tokens."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **images: Tensor,
    ) -> Tensor:
        """Sum the losses of rows [N,T], or of texts packed into one row [1,T] (`PackedCollator`)."""
        # Not left to accelerate: its policy for sharded models would narrow the SSM's parameters too.
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.model.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cu_seq_lens_q=cu_seq_lens_q,
                # Packed texts are for models that do not read it.
                prompt_mask=(labels != IGNORED).long().cumsum(-1) == 0 if cu_seq_lens_q is None else None,
                use_cache=False,
                **images,
            )
            hidden = outputs.last_hidden_state
            wanted = labels[:, 1:] != IGNORED
            logits = self.model.lm_head(hidden[:, :-1][wanted])
            loss = F.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum")
            if self.balances is not None and outputs.balance is not None:
                balance = outputs.balance * wanted.sum()
                self.balances.append(balance.detach())
                loss = loss + self.model.balance_weight * balance
            return loss if images else loss + self._nothing(input_ids)

    def _nothing(self, input_ids: Tensor) -> Tensor:
        """0, by way of the tower and the connector, which text alone does not reach.

        A micro-batch of rows without an image would else leave nothing to learn where the connector alone does, and
        processes that wait for one another's gradients (or weights) would wait for ever.
        """
        blank = {name: tensor.to(input_ids.device) for name, tensor in self.blank.items()}
        seen = self.model.get_grids(**blank)
        text = self.model.get_input_embeddings()(input_ids[:1, :1])
        connector = self.model.model.connector
        return 0 * connector(text, **seen.given).float().sum()


class ConversationsJob(Job):
    """A model that learns from conversations (docs/mathematics.md, section 8).

    The gradient of a step is that of the mean over all answer tokens of its `batch_size` rows, however they are cut
    into processes and micro-batches.
    """

    counted = "answer_tokens"
    """What the mean is over, by the name that a step's numbers have it under."""

    def __init__(self, config: RowsConfig, report: Callable[[Problem], None] = lambda problem: None):
        self.config = config
        self.model, self.processor = self._start_model()
        if config.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.dataset, self.rows, self.held_out, self.validation = read_data(
            config, self.processor, report, **self._reading()
        )
        sizes = self.dataset.sizes[self.rows]
        self.order = BatchOrder(sizes, min(config.batch_size, len(sizes)), config.seed)
        self.steps = config.max_steps or (config.epochs or EPOCHS) * self.order.batches_per_epoch

    def _start_model(self) -> tuple[PreTrainedModel, FireboltProcessor]:
        """The model, with gradients where it learns, and its processor."""
        model, processor = start_model(self.config)
        if self.config.packing and not model.model.packs:
            raise ConfigError(
                f"packing is true; expected false with connector {model.config.connector!r} and fusion "
                f"{model.config.fusion!r}, which insert positions into each row"
            )
        choose_parts(model, self.config.train, self.config.lora)
        if self.config.ssm_lr is not None and not any(isinstance(m, WideParameters) for m in model.modules()):
            raise ConfigError(
                f"ssm_lr is {self.config.ssm_lr}; expected none, as the connector has no state-space model"
            )
        return model, processor

    def collator(self, dataset: Conversations, processor: FireboltProcessor) -> Collator:
        """Make what makes micro-batches of rows."""
        return (PackedCollator if self.config.packing else Collator)(dataset, processor)

    def _reading(self) -> dict:
        """Return the arguments of `Conversations` that are not in the configuration."""
        connector = self.model.model.connector
        reading: dict = {"image_words": IMAGE_WORDS} if connector.places_images else {}
        # Without times each frame would be an image with a token of its own, and how many there are is not yet known.
        if not connector.places_images or connector.config.grid_times:
            reading["read_video"] = self._video_of
        return reading

    def _video_of(self, file: Path) -> list[Video]:
        return [read_video(file, frames=self.config.frames)]

    def _loss(self) -> nn.Module:
        """A module with the model as `model`, from a micro-batch to the sum of its losses."""
        blank = self.processor.image_processor([[blank_image(self.processor)]], return_tensors="pt")
        return AnswerLoss(self.model, dict(blank), self.config.precision == "bf16")

    def _groups(self) -> list[dict]:
        return parameter_groups(self.model, self.config.lr, self.config.ssm_lr, self.config.weight_decay)

    def _all_groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _set_rates(self, number: int) -> float:
        config = self.config
        return set_learning_rates(self._all_groups(), number, self.steps, config.warmup_steps, config.min_lr)

    def _parts(self) -> dict[str, list[nn.Module]]:
        return part_modules(self.model)

    def prepare(self, accelerator: Accelerator) -> None:
        config = self.config
        self.accelerator = accelerator
        self.micro_batches = config.accumulation(accelerator.num_processes)
        if config.optimizer == "muon" and accelerator.distributed_type == DistributedType.FSDP:
            raise ConfigError(
                "optimizer is 'muon'; expected 'adamw' for a model in shards (FSDP), whose matrices are cut"
            )
        optimizers = make_optimizers(
            config.optimizer, self._groups(), dense_matrices(self.model), config.lr, (config.betas[0], config.betas[1])
        )
        self.loss, *self.optimizers = accelerator.prepare(self._loss(), *optimizers)
        # Dropout differs between processes; what a checkpoint holds replaces this.
        torch.manual_seed(config.seed + 1000 * accelerator.process_index)

    def states(self) -> States:
        return States({"loss": self.loss}, self.optimizers)

    def start(self, step: int) -> None:
        self._learn()
        turns = StepBatches(
            self.order,
            self.rows,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.micro_batches,
            step,
            self.steps,
        )
        self._batches = self._read(turns, self.dataset)

    def _read(self, batches, dataset: Conversations) -> Iterator[MicroBatch]:
        loader = DataLoader(
            range(len(dataset)),
            batch_sampler=batches,
            collate_fn=self.collator(dataset, self.processor),
            num_workers=self.config.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            # Of its own: the loader would draw from the generator that dropout draws from.
            generator=torch.Generator(),
            worker_init_fn=ignore_interrupts,
        )
        with interrupts_held():
            return iter(loader)

    def _learn(self) -> None:
        self.loss.train()
        for part, modules in self._parts().items():
            if part == "vision" and part not in self.config.train:
                for module in modules:
                    module.eval()

    def step(self, number: int) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        batches = [self._noted(next(self._batches), self.dataset) for _ in range(self.micro_batches)]
        counts = torch.tensor(
            [sum(getattr(batch, name) for batch in batches) for name in ("counted", "text_tokens", "positions")],
            dtype=torch.float64,
            device=accelerator.device,
        )
        counted, text_tokens, positions = accelerator.reduce(counts).tolist()
        # Of processes the mean of the gradients is taken.
        share = accelerator.num_processes / max(counted, 1)
        rate = self._set_rates(number)
        total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.loss):
                loss = self.loss(**self._inputs(batch))
                accelerator.backward(loss * share)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.loss.parameters(), config.clip or math.inf)
        total, norms = agreed(accelerator, total, norm)
        finite = math.isfinite(total) and math.isfinite(norms)
        for optimizer in self.optimizers:
            if finite:
                optimizer.step()
            optimizer.zero_grad()
        measured = {
            "loss": total / max(counted, 1),
            "lr": rate,
            "gradient_norm": float(norm),
            self.counted: int(counted),
            "tokens": int(text_tokens),
            "padding": 1 - text_tokens / max(positions, 1),
            **self._balance(counted),
        }
        return measured if finite else {**measured, "skipped": True}

    def _balance(self, counted: float) -> dict[str, float]:
        """The mean over answer tokens of the balance of the connector's experts, which is a part of the loss."""
        balances = getattr(self.accelerator.unwrap_model(self.loss), "balances", None)
        if balances is None:
            return {}
        total = sum(balances, torch.zeros((), device=self.accelerator.device))
        balances.clear()
        return {"balance": agreed(self.accelerator, total)[0] / max(counted, 1)}

    def _noted(self, batch: MicroBatch, dataset: Conversations) -> MicroBatch:
        for problem in batch.problems:
            dataset.note(problem)
        return batch.to(self.accelerator.device)

    def _inputs(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Return the batch, or, where every row was bad, a row without an answer: processes must call alike often."""
        if batch.inputs is not None:
            return batch.inputs
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.accelerator.device)
        return dict(zip(TEXT, (ids, torch.ones_like(ids), torch.full_like(ids, IGNORED))))

    @torch.no_grad()
    def validate(self) -> float | None:
        """exp of the mean cross-entropy of the answer tokens held out; None where there are none."""
        if not len(self.held_out):
            return None
        self.loss.eval()
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        size = self.config.micro_batch_size or max(1, self.config.batch_size // processes)
        rows = self.held_out[np.argsort(self.validation.sizes[self.held_out], kind="stable")]
        pieces = np.array_split(rows, processes * -(-len(rows) // (size * processes)))
        mine = pieces[accelerator.process_index :: processes]
        sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        for batch in self._read([[int(i) for i in part] for part in mine], self.validation):
            batch = self._noted(batch, self.validation)
            sums[0] += self.loss(**self._inputs(batch))
            sums[1] += batch.counted
        total, counted = accelerator.reduce(sums).tolist()
        self._learn()
        if not counted:
            return None
        mean = total / counted
        return math.exp(min(mean, 700)) if math.isfinite(mean) else mean

    def save(self, folder: Path) -> None:
        state = self.accelerator.get_state_dict(self.loss)
        if self.accelerator.is_main_process:
            names = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
            save_trained(self.model, names, self.processor, folder)


def read_data(
    config: RunConfig, processor: FireboltProcessor, report: Callable[[Problem], None], **reading
) -> tuple[Conversations, np.ndarray, np.ndarray, Conversations]:
    """The data, the rows of it to train on, those held out, and the data that these are rows of.

    Raises ValueError (TooManyBadRows, ConfigError) where there is too little to train on.
    """

    def read(files: list[str]) -> Conversations:
        return Conversations(
            [Path(file) for file in files],
            processor.tokenizer,
            image_root=Path(config.image_root) if config.image_root else None,
            max_length=config.max_length,
            max_bad_share=config.max_bad_share,
            report=report,
            **reading,
        )

    dataset = read(config.data)
    everything = np.arange(len(dataset))
    if config.validation:
        validation = read(config.validation)
        return dataset, everything, np.arange(len(validation)), validation
    # The same rows whatever the seed of the run, so that runs can be compared.
    shuffled = np.random.default_rng(0).permutation(everything)
    held_out = round(config.validation_share * len(dataset))
    if config.eval_every and not held_out:
        raise ConfigError(
            f"eval_every is {config.eval_every}, but validation_share, {config.validation_share} of {len(dataset)} "
            "rows, holds out none; give a larger share, or eval_every=0"
        )
    if held_out == len(dataset):
        raise ConfigError(
            f"validation_share is {config.validation_share}, which leaves none of {len(dataset)} rows to train on; "
            "give a smaller share"
        )
    return dataset, np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out]), dataset


def blank_image(processor: FireboltProcessor):
    from PIL import Image

    side = processor.image_processor.size["height"]
    return Image.new("RGB", (side, side))
