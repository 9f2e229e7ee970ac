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
from .task import KINDS

TITLES = {
    "times": "times of the frames",
    "even": "times as if they came a second apart",
    "order": "frames as images in their order",
}


def table(found: dict[str, list[dict[int, float]]]) -> str:
    """A line for each variant, in percent: the mean of the seeds, the least and the most of them."""
    rows = []
    for told, seeds in found.items():
        cells = []
        for kind in KINDS:
            shares = [100 * seed[kind] for seed in seeds]
            cells.append(f"{sum(shares) / len(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})")
        rows.append([TITLES[told], *cells])
    return markdown_table(["", *KINDS.values()], rows)


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
