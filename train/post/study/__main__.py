"""Trainings by trl, compared: python -m firebolt_vl.train.post.study [OUT] [--quick] [--steps N] [--questions N]"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ....files.tables import markdown_table
from .runs import Sizes, study

TITLES = {
    "start": "start model",
    "sft": "SFT, as many further steps (control)",
    "dpo": "DPO",
    "grpo-answer": "GRPO, reward exact",
    "grpo-both": "GRPO, rewards exact and grounding",
    "grpo-grounding": "GRPO, reward grounding alone",
}
COLUMNS = {
    "accuracy": "inside",
    "harder": "harder layouts",
    "wordings": "held-out wordings",
    "occlusion": "grounded by occlusion",
    "weights": "grounded by weights",
}


def table(results: dict[str, list[dict]]) -> str:
    """A line for each variant, in percent: the mean over seeds, and the lowest and the highest."""
    rows = []
    for name, found in results.items():
        if found:
            cells = [_cell([one[key] for one in found]) for key in COLUMNS]
            rows.append([TITLES[name], str(len(found)), *cells])
    return markdown_table(["training", "seeds", *COLUMNS.values()], rows)


def _cell(values: list[float]) -> str:
    shown = [100 * value for value in values]
    mean = f"{sum(shown) / len(shown):.1f}"
    return mean if len(shown) == 1 else f"{mean} ({min(shown):.1f} to {max(shown):.1f})"


def main() -> None:
    """Run what is missing of the study, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default="out/post-study", help="where finished parts are kept")
    parser.add_argument("--quick", action="store_true", help="the least of everything: to see that it works")
    parser.add_argument("--steps", type=int, metavar="N", help=f"of each training; default: {Sizes.steps}")
    parser.add_argument("--questions", type=int, metavar="N", help=f"of a step; default: {Sizes.questions}")
    given = parser.parse_args()
    sizes = Sizes.quick() if given.quick else Sizes()
    chosen = {name: value for name in ("steps", "questions") if (value := getattr(given, name)) is not None}
    sizes = replace(sizes, **chosen)
    results = study(Path(given.out), sizes, lambda text: print(text, file=sys.stderr, flush=True))
    print(table(results))
    for key in ("pass@8", "sampled"):
        print(f"start model, {key}: {100 * results['start'][0][key]:.1f} %")


if __name__ == "__main__":
    main()
