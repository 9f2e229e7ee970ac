"""Steps of the day, the most valuable first, and the two scales at which they can be done."""

from typing import NamedTuple

from ..answer import FULL_SIZE, Sizes
from ..cases import OPS, Case
from ..predict.goals import GOALS

SPECTRA = ("vandermonde", "cauchy")


class Step(NamedTuple):
    """A part of the day, done whole or not at all."""

    name: str
    kind: str
    """What work it is (`work.WORK`)."""
    argument: str
    most: float
    """Seconds that it may take; what takes longer is broken off."""
    least: float
    """Seconds without which it is not begun."""


class Scale(NamedTuple):
    """Size of everything."""

    device: str
    seconds: float
    """For which each provider of an op runs at a size."""
    sweep_seconds: float
    """For which a configuration runs beside the default."""
    answers: Sizes
    batches: tuple[int, ...]
    new_tokens: int
    small: bool
    """Whether sizes of ops are cut down so that a CPU gets through them at once."""

    def cases(self, op: str, dtype: str) -> list[Case]:
        """The sizes of an op: those of the short selections, and those for which there is a goal."""
        chosen = [case for case in OPS[op].cases if case.quick and case.timed]
        if self.small:
            return [_small(case) for case in chosen[:1]]
        goals = {str(goal.case): goal.case for goal in GOALS if goal.op == op and goal.dtype == dtype}
        return [*chosen, *(case for name, case in goals.items() if name not in map(str, chosen))]

    def dtypes(self, op: str) -> list[str]:
        """The dtypes in which an op is timed."""
        return [dtype for dtype in ("bfloat16", "float32") if dtype in OPS[op].dtypes]


def _small(case: Case) -> Case:
    return case._replace(sizes={name: min(size, 24 if name in "DTL" else 4) for name, size in case.sizes.items()})


def _tiny_answers() -> Sizes:
    """The backbones of a rehearsal."""
    text = {**FULL_SIZE.text, "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]}
    vision = {**FULL_SIZE.vision, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32}
    return Sizes(text={**text, "block_multiple_of": 8}, vision=vision, image_size=32, tile_size=16)


SCALES = {
    "full": Scale("cuda", 0.1, 0.03, FULL_SIZE, (1, 8, 32), 64, small=False),
    "rehearsal": Scale("cpu", 0.001, 0.001, _tiny_answers(), (1, 2), 3, small=True),
}


def steps(scale: Scale) -> list[Step]:
    """Return the steps in the order in which they are done."""
    times = [
        Step(f"times-{op}-{dtype}", "times", f"{op} {dtype}", 40, 8)
        for dtype in ("bfloat16", "float32")
        for op in OPS
        if dtype in scale.dtypes(op) and (dtype == "bfloat16" or op in (*SPECTRA, "fft_conv") or scale.small)
    ]
    tests = [] if scale.small else [Step("tests-of-kernels", "tests", "kernels", 200, 20)]
    first, *more = (Step(f"answers-{batch}", "answers", str(batch), 90, 30) for batch in scale.batches)
    found = [
        Step("compile", "compile", "", 60, 20),
        Step("tests-of-gpu", "tests", "gpu", 100, 20),
        *times,
        first,
        *(Step(f"sweep-{op}", "sweep", op, 25, 8) for op in OPS),
        *more,
        Step("predict", "predict", "", 60, 20),
        *tests,
    ]
    # A rehearsal is no race, on a machine that may have other work.
    return [step._replace(most=20 * step.most) for step in found] if scale.small else found
