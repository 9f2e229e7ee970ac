"""Worth of the times of frames, by training with them and without.

python -m firebolt_vl.train.times [--steps N] [--seeds N] [--quick]
"""

import argparse
import sys
import time
from dataclasses import replace

from ...files.tables import markdown_table
from ..session import use_some_cores
from .runs import Sizes, study

TITLES = {
    "times": "`grid_times`",
    "order": "no times, frames as images in their order",
    "nothing": "no times, frames of one image",
}


def table(found: dict[str, list[float]]) -> str:
    """A line for each variant, in percent: each seed, and the mean."""
    seeds = max(len(shares) for shares in found.values())
    rows = [
        [TITLES[told], *(f"{100 * share:.1f}" for share in shares), f"{100 * sum(shares) / len(shares):.1f}"]
        for told, shares in found.items()
    ]
    return markdown_table(["", *(f"seed {seed}" for seed in range(seeds)), "mean"], rows)


def main() -> None:
    """Train each variant with each seed, and print the shares of right answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything: to see that it works")
    for name in ("steps", "seeds"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"default: {getattr(Sizes, name)}")
    given = parser.parse_args()
    sizes = Sizes.quick() if given.quick else Sizes()
    sizes = replace(
        sizes, **{name: value for name in ("steps", "seeds") if (value := getattr(given, name)) is not None}
    )
    use_some_cores()
    start = time.perf_counter()
    found = study(sizes, lambda text: print(text, file=sys.stderr, flush=True))
    print(table(found))
    print(f"\n{sizes.steps} steps a run; {time.perf_counter() - start:.0f} s for all of it.")


if __name__ == "__main__":
    main()
