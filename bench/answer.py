"""Whole answers, side by side: ours in several forms, its decoder alone, the original's way, and peers of the field.

All are built at full size, that of LFM2-350M and SigLIP 2 base/16, with random weights: nothing is downloaded, and what
is measured does not depend on what the weights say. Every subject gets one image of the same photo's size, in the views
or patches that its own preprocessing makes of it, and 32 tokens of text; then they answer in turns. Inputs are ready
before the clock starts.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import (
    Lfm2ForCausalLM,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..cmm.classes import change_class
from ..files.tables import csv_of, rows_of_csv
from ..kernels.linear import PRODUCT
from ..model import FireboltConfig, FireboltForConditionalGeneration, FireboltImageProcessor
from ..model.compat import restore_stock
from ..model.cpu.prepacking import prepack_weights
from ..model.cpu.quantized_models import QUANTIZE, logits_drift
from .kernels import device_name
from .modulator import PlainModulator
from .timing import Run, peak_bytes

PROMPT_TOKENS = 32
PHOTO = (640, 480)
OURS = ("ours", "ours-int8", "ours-compiled", "decoder-alone", "original-policy", "original-policy-plain")
PEERS = ("lfm2-vl-450m", "smolvlm2-256m", "smolvlm2-500m")
# Measured where they are asked for by name.
ON_REQUEST = ("ours-int4", "ours-int8-compiled")
DTYPES = ("float32", "bfloat16")
# Answers of those that begin anew for each token are summed up from so many measured lengths.
MEASURED_LENGTHS = 5
# Tokens of the answer whose memory is watched.
WATCHED_TOKENS = 4
BANDWIDTH_BYTES = 2**28
IN_PYTORCH = "in PyTorch; memory of weights and tensors alone"
# What no model says, so that answers are as long as asked for; to forbid their end instead costs 0.7 ms a token.
NO_TOKEN = -1

LFM2_350M = {
    "model_type": "lfm2",
    "vocab_size": 65536,
    "hidden_size": 1024,
    "intermediate_size": 6656,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "layer_types": ["full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)],
    "conv_L_cache": 3,
    "block_auto_adjust_ff_dim": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
SIGLIP2_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
}


def _llama(width: int, layers: int, heads: int, inner: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": heads // 3}


class Sizes(NamedTuple):
    """The backbones of all subjects; tests take small ones."""

    text: dict[str, Any] = LFM2_350M
    vision: dict[str, Any] = {**SIGLIP2_BASE, "image_size": 256}
    image_size: int = 256
    tile_size: int = 128
    lfm2_vl: dict[str, Any] = {
        "text_config": LFM2_350M,
        "vision_config": {"model_type": "siglip2_vision_model", **SIGLIP2_BASE},
    }
    smolvlm: dict[str, dict[str, int]] = {
        "smolvlm2-256m": _llama(576, 30, 9, 1536),
        "smolvlm2-500m": _llama(960, 32, 15, 2560),
    }
    smolvlm_vision: dict[str, Any] = {**SIGLIP2_BASE, "image_size": 512}
    smolvlm_vocabulary: int = 49280


FULL_SIZE = Sizes()


@dataclass(frozen=True)
class Row:
    """A line of the table. Seconds and rates are medians over the rounds."""

    name: str
    dtype: str
    first_token_s: float
    decode_tok_s: float
    answer_s: float
    peak_mb: float
    """Weights and the most that an answer needed beside them."""
    read_mb: float
    """Weights that each token has to read."""
    floor_tok_s: float
    """How many tokens a second that allows at the machine's measured read bandwidth."""
    new_tokens: int
    device: str
    threads: int
    torch: str
    batch: int = 1
    """Texts that are answered at once; tokens a second are of all of them."""
    disk_mb: float = 0.0
    """Weights as files have them."""
    contains: str = ""
    """What is measured, and in which memory."""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in JSON_NAMES}


JSON_NAMES = ("name", "dtype", "first_token_s", "decode_tok_s", "answer_s", "peak_mb")


class Outside(NamedTuple):
    """Costs of a subject that answers in a process of its own."""

    read_bytes: int
    """Of the weights that each token reads."""
    disk_bytes: int
    peak_bytes: Callable[[], int]
    """The most memory of its process until now."""
    contains: str


class Subject(NamedTuple):
    """`answer(n)` makes n tokens and returns when each was there, in seconds from the start."""

    name: str
    dtype: str
    answer: Callable[[int], list[float]]
    model: Any
    """A module; None for one outside."""
    step_modules: list[nn.Module]
    """Those whose weights each token reads."""
    anew: bool = False
    """Whether each token begins anew, so that the answer is summed up from some of its lengths."""
    batch: int = 1
    outside: Outside | None = None

    def read_bytes(self) -> int:
        return weight_bytes(self.step_modules) if self.outside is None else self.outside.read_bytes

    def disk_bytes(self) -> int:
        return weight_bytes([self.model]) if self.outside is None else self.outside.disk_bytes


class _Clock:
    """A streamer that only looks at the time."""

    def __init__(self, device: str):
        self.device, self.start, self.times = device, time.perf_counter(), []

    def put(self, _) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        pass


class _StopAfter(StoppingCriteria):
    """Stops early without a shorter cache: what is compiled for a warm-up is what runs later."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: Tensor, scores, **_) -> Tensor:
        return torch.full(input_ids.shape[:1], input_ids.shape[1] >= self.length, device=input_ids.device)


def _generating(model: nn.Module, inputs: dict[str, Tensor], room: int, device: str) -> Callable[[int], list[float]]:
    """Greedy answers of exactly n tokens, in caches for `room` tokens."""

    def answer(n: int) -> list[float]:
        clock = _Clock(device)
        length = inputs["input_ids"].shape[1]
        model.generate(
            **inputs,
            max_new_tokens=room,
            eos_token_id=NO_TOKEN,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
            stopping_criteria=StoppingCriteriaList([_StopAfter(length + n)]),
        )
        return clock.times[1:]

    return answer


def photo() -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (PHOTO[1] // 8, PHOTO[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(PHOTO, Image.Resampling.BICUBIC)


def encoded_photo(sizes: Sizes = FULL_SIZE, batch: int = 1) -> dict[str, Tensor]:
    """Make the views of the photo, one in each text."""
    return dict(image_processor(sizes)([[photo()]] * batch, return_tensors="pt"))


def text_inputs(tokens: int, vocabulary: int, device: str, batch: int = 1) -> dict[str, Tensor]:
    """Make random texts of so many tokens, the same each time."""
    ids = torch.randint(8, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def build(
    dtype: str,
    device: str,
    new_tokens: int,
    peers: bool,
    only: Sequence[str] | None = None,
    sizes: Sizes = FULL_SIZE,
    batch: int = 1,
) -> Iterator[Subject]:
    """The subjects of a dtype, one after the other as they are asked for; those of the field answer one text."""
    there = (*OURS, *(PEERS if peers else ()))
    wanted = [name for name in (*there, *ON_REQUEST) if (name in only if only else name in there)]
    if any(name not in PEERS for name in wanted):
        yield from _ours(dtype, device, new_tokens, wanted, sizes, batch)
    for name in wanted:
        if name == "lfm2-vl-450m":
            yield _lfm2_vl(dtype, device, new_tokens, sizes)
        elif name in PEERS:
            yield _smolvlm(name, dtype, device, new_tokens, sizes)


def random_model(
    dtype: str, device: str, sizes: Sizes = FULL_SIZE, cmm: dict[str, Any] | None = None
) -> FireboltForConditionalGeneration:
    """Firebolt-VL of these sizes with random weights, the same each time, in eval mode; `cmm`: of its connector."""
    torch.manual_seed(0)
    config = FireboltConfig(text_config=sizes.text, vision_config=sizes.vision, cmm_config=cmm)
    return FireboltForConditionalGeneration(config).eval().to(device, getattr(torch, dtype)).requires_grad_(False)


def image_processor(sizes: Sizes = FULL_SIZE) -> FireboltImageProcessor:
    """Make the image processor that belongs to these sizes."""
    return FireboltImageProcessor(
        size={"height": sizes.image_size, "width": sizes.image_size}, tile_size=sizes.tile_size
    )


def _ours(
    dtype: str, device: str, new_tokens: int, wanted: Sequence[str], sizes: Sizes, batch: int
) -> Iterator[Subject]:
    model = random_model(dtype, device, sizes)
    pixels = {name: value.to(device) for name, value in encoded_photo(sizes, batch).items()}
    text = text_inputs(PROMPT_TOKENS, model.config.text_config.vocab_size, device, batch)
    inputs = {**text, **pixels}
    sharing = lambda: copy.deepcopy(model, {id(p): p for p in model.parameters()})  # noqa: E731
    for name in wanted:
        if name in ("ours", "ours-int8", "ours-compiled", *ON_REQUEST):  # as `firebolt ask` loads them
            ours = sharing()
            quantized = next((kind for kind in QUANTIZE if kind in name), None)
            if quantized is not None:
                QUANTIZE[quantized](ours)
            prepack_weights(ours)
            if "compiled" in name:
                ours.compile_step()
            kept_in = quantized or dtype
            answer = _generating(ours, inputs, new_tokens, device)
            yield Subject(name, kept_in, answer, ours, _step_modules(ours), batch=batch)
        elif name == "decoder-alone":
            bare = decoder_alone(model)
            answer = _generating(bare, text, new_tokens, device)
            yield Subject(name, dtype, answer, bare, [bare.model.layers, bare.lm_head], batch=batch)
        elif name in ("original-policy", "original-policy-plain"):
            anew = as_in_transformers(sharing())
            if name.endswith("plain"):
                anew.model.connector = PlainModulator(anew.model.connector)
            answer = _beginning_anew(anew, inputs, device)
            yield Subject(name, dtype, answer, anew, _step_modules(model), anew=True, batch=batch)


def _step_modules(model: FireboltForConditionalGeneration) -> list[nn.Module]:
    connector = model.model.connector
    layers = [connector] if connector.second is None else [connector, connector.second]
    modulator = [
        part for layer in layers for part in (layer.query, layer.q_proj, layer.ssm, layer.ffn) if part is not None
    ]
    return [model.model.language_model.layers, model.lm_head, *modulator]


def as_in_transformers(model: FireboltForConditionalGeneration) -> FireboltForConditionalGeneration:
    """The model with vision tower, decoder and head as transformers computes them; the connector is left as it is."""
    restore_stock(model)
    change_class(model.lm_head, NonDynamicallyQuantizableLinear)  # computes as nn.Linear, and is not a plain one
    return model


def decoder_alone(model: FireboltForConditionalGeneration) -> Lfm2ForCausalLM:
    """transformers' own LFM2 with the decoder's weights, which are not copied."""
    with torch.device("meta"):
        bare = Lfm2ForCausalLM(model.config.text_config)
    weights = {f"model.{name}": value for name, value in model.model.language_model.state_dict().items()}
    bare.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight}, assign=True)
    bare.model.rotary_emb = type(bare.model.rotary_emb)(model.config.text_config).to(model.device)
    return bare.eval().requires_grad_(False)


def _beginning_anew(model: nn.Module, inputs: dict[str, Tensor], device: str) -> Callable[[int], list[float]]:
    """The original's policy: each token encodes the image and runs the whole text again, with logits of all of it."""

    @torch.no_grad()
    def answer(n: int) -> list[float]:
        ids, times = inputs["input_ids"], []
        pixels = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        for number in _measured(n):
            made = ids[:, :1].expand(-1, number)
            began = time.perf_counter()
            logits = model(input_ids=torch.cat([ids, made], 1), **pixels, use_cache=False).logits
            logits[:, -1].argmax(-1).item()
            times.append(time.perf_counter() - began)
        return np.cumsum(np.interp(range(n), _measured(n), times)).tolist()

    return answer


def _measured(n: int) -> list[int]:
    """Choose which of n tokens are made: the first, the last and some between."""
    return sorted({round(step * (n - 1) / (MEASURED_LENGTHS - 1)) for step in range(MEASURED_LENGTHS)})


def _lfm2_vl(dtype: str, device: str, new_tokens: int, sizes: Sizes) -> Subject:
    """Its NaFlex tower sees a 640 x 480 photo as 36 x 26 patches, padded to 1024, and makes 18 x 13 tokens of them."""
    model = _random(Lfm2VlForConditionalGeneration, Lfm2VlConfig(**sizes.lfm2_vl), dtype, device)
    patches = (26, 36)
    count, padded = patches[0] * patches[1], 1024
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(1, padded, 3 * model.config.vision_config.patch_size**2)
    pixels[:, :count] = torch.rand(1, count, pixels.shape[-1], generator=generator) * 2 - 1
    inputs = _with_image_tokens(model, count // model.config.downsample_factor**2, device)
    inputs["pixel_values"] = pixels.to(device, model.dtype)
    inputs["pixel_attention_mask"] = (torch.arange(padded) < count)[None].to(device)
    inputs["spatial_shapes"] = torch.tensor([patches], device=device)
    step = [model.model.language_model.layers, model.lm_head]
    return Subject("lfm2-vl-450m", dtype, _generating(model, inputs, new_tokens, device), model, step)


def _smolvlm(name: str, dtype: str, device: str, new_tokens: int, sizes: Sizes) -> Subject:
    """One view of 512 x 512 and 64 tokens for it: less than its default, which cuts the photo into tiles."""
    text = {
        "model_type": "llama",
        "vocab_size": sizes.smolvlm_vocabulary,
        "tie_word_embeddings": False,
        **sizes.smolvlm[name],
    }
    config = SmolVLMConfig(
        text_config=text,
        vision_config=sizes.smolvlm_vision,
        scale_factor=4,
        image_token_id=sizes.smolvlm_vocabulary - 1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = _random(SmolVLMForConditionalGeneration, config, dtype, device)
    side = sizes.smolvlm_vision["image_size"]
    tokens = (side // sizes.smolvlm_vision["patch_size"]) ** 2 // config.scale_factor**2
    inputs = _with_image_tokens(model, tokens, device)
    pixels = torch.rand(1, 1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inputs["pixel_values"] = pixels.to(device, model.dtype)
    step = [model.model.text_model.layers, model.lm_head]
    return Subject(name, dtype, _generating(model, inputs, new_tokens, device), model, step)


def _random(kind: type, config, dtype: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    return kind(config).eval().to(device, getattr(torch, dtype)).requires_grad_(False)


def _with_image_tokens(model: nn.Module, count: int, device: str) -> dict[str, Tensor]:
    text = text_inputs(PROMPT_TOKENS, model.config.image_token_id, device)["input_ids"]
    image = torch.full((1, count), model.config.image_token_id, device=device)
    ids = torch.cat([image, text], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def weight_bytes(modules: Sequence[nn.Module]) -> int:
    """Bytes of the distinct parameters and buffers in modules, 8-bit weights included."""
    tensors = {}
    for module in (inner for outer in modules for inner in outer.modules()):
        tensors[id(module)] = getattr(module, "packed_bytes", 0)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensors[tensor.data_ptr()] = tensor.nbytes
    return sum(tensors.values())


def read_bandwidth(device: str) -> float:
    """Bytes a second that the machine reads from memory: the best of several sums over more than any cache holds."""
    source = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    best = float("inf")
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        source.sum().item()
        best = min(best, time.perf_counter() - start)
    return source.nbytes / best


def measure(
    subjects: Sequence[Subject],
    new_tokens: int,
    rounds: int,
    device: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Warm every subject up, watch its memory, then let all answer in turns."""
    steps, done = len(subjects) * (rounds + 1), 0
    progress(0, steps)
    needs = {}
    for subject in subjects:
        few = 1 if subject.anew else min(WATCHED_TOKENS, new_tokens)
        subject.answer(few)
        if subject.outside is not None:
            progress(done := done + 1, steps)
            continue
        extra = peak_bytes(Run(lambda _, subject=subject, few=few: subject.answer(few)), device)
        needs[subject.name] = weight_bytes([subject.model]) + extra
        progress(done := done + 1, steps)
    bandwidth = read_bandwidth(device)
    times: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            times[subject.name].append(subject.answer(new_tokens))
            progress(done := done + 1, steps)
    needs |= {one.name: one.outside.peak_bytes() for one in subjects if one.outside is not None}
    return [
        _row(subject, times[subject.name], needs[subject.name], bandwidth, new_tokens, device) for subject in subjects
    ]


def _row(subject: Subject, times, need: int, bandwidth: float, new_tokens: int, device: str) -> Row:
    gaps = [after - before for made in times for before, after in pairwise(made)]
    read = subject.read_bytes()
    return Row(
        name=subject.name,
        dtype=subject.dtype,
        first_token_s=round(statistics.median(made[0] for made in times), 5),
        decode_tok_s=round(subject.batch / statistics.median(gaps), 4),
        answer_s=round(statistics.median(made[-1] for made in times), 5),
        peak_mb=round(need / 1e6, 1),
        read_mb=round(read / 1e6, 1),
        floor_tok_s=round(subject.batch * bandwidth / read, 2),
        new_tokens=new_tokens,
        device=device_name(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        batch=subject.batch,
        disk_mb=round(subject.disk_bytes() / 1e6, 1),
        contains=IN_PYTORCH if subject.outside is None else subject.outside.contains,
    )


def notes(subjects: Sequence[Subject], device: str) -> list[str]:
    """Notes to the table: how far 8 bits move the logits, and how much of a token the linear layers are."""
    told, by_name = [], {subject.name: subject for subject in subjects}
    if "ours" in by_name and "ours-int8" in by_name:
        ours, small = by_name["ours"].model, by_name["ours-int8"].model
        text = text_inputs(PROMPT_TOKENS, ours.config.text_config.vocab_size, device)
        grids = torch.randn(1, 5, ours.config.vision_config.hidden_size, generator=torch.Generator().manual_seed(0))
        drift = logits_drift(ours, small, **text, grids=grids.to(device, ours.dtype))
        told.append(
            f"8 bits (PyTorch's int8 kernels, a scale for each token and channel) move the logits of the prompt by "
            f"{100 * drift['relative']:.1f} % of their spread; {100 * drift['same_token']:.0f} % of the most likely "
            "tokens stay (random weights)."
        )
    if device == "cpu":
        for name in ("ours", "ours-int8"):
            if name in by_name:
                share = linear_share(by_name[name])
                told.append(f"{name}, {by_name[name].dtype}: linear layers are {100 * share:.0f} % of a token.")
    return told


LINEAR_KERNELS = (
    "aten::mm",
    "aten::addmm",
    f"mkldnn::{PRODUCT}",
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
)


def linear_share(subject: Subject, tokens: int = 8) -> float:
    """The share of the linear layers in a token's processor time, prompts left out."""

    def self_times(n: int) -> tuple[float, float]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            subject.answer(n)
        events = profile.key_averages()
        linear = sum(event.self_cpu_time_total for event in events if event.key in LINEAR_KERNELS)
        return linear, sum(event.self_cpu_time_total for event in events)

    (before, all_before), (after, all_after) = self_times(1), self_times(1 + tokens)
    return (after - before) / (all_after - all_before)


def to_csv(rows: Sequence[Row]) -> str:
    return csv_of(Row, rows)


def from_csv(text: str) -> list[Row]:
    return rows_of_csv(Row, text)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time to the first token, tokens a second and the whole answer of each subject."""
    from matplotlib.figure import Figure

    labels = [f"{row.name}, {row.dtype}" for row in rows]
    panels = (("first token, s", "first_token_s"), ("tokens a second", "decode_tok_s"), ("whole answer, s", "answer_s"))
    figure = Figure(figsize=(11, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, name) in zip(axes, panels):
        colors = ["C1" if row.name.startswith("ours") else "C0" if row.name in PEERS else "C7" for row in rows]
        values = [getattr(row, name) for row in rows]
        bars = axis.barh(range(len(rows)), values, color=colors)
        axis.set_yticks(range(len(rows)), labels)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, 1.25 * max(values))  # from zero: lengths are compared by eye
    axes[0].invert_yaxis()
    first = rows[0]
    figure.suptitle(f"{first.new_tokens} tokens, {first.device}, {first.threads} threads", fontsize=10)
    figure.savefig(path, dpi=130)
