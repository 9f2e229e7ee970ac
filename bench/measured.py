"""The README's table of measured ratios, from the kept points: `python -m firebolt_vl.bench.measured`."""

from collections.abc import Sequence
from pathlib import Path

from ..evaluate.files import markdown_table
from .kernels import Point, from_csv, speed_ups

KEPT = Path(__file__).resolve().parents[1] / "docs" / "kernels.csv"
MODES = {"forward": "forward", "both": "forward + backward"}


def markdown(points: Sequence[Point]) -> str:
    """Times of the layer by its equations and by the grid-side table."""
    rows = []
    sizes = ""
    for row in speed_ups([point for point in points if point.op == "cmm" and point.mode in MODES]):
        part, _, sizes = row["sizes"].partition(" B=")
        found, ratios = row["points"], row["speed_ups"]
        ratio = f"{ratios['eager']:.2f}" if ratios else "its check is red"
        times = (f"{found[name].median_ms:.0f} ms" for name in ("eager", "ours"))
        rows.append([f"{part}, {MODES[row['mode']]}", *times, ratio])
    first = points[0]
    return "\n".join(
        [
            markdown_table(["", "equations", "grid-side table", "times faster"], rows),
            "",
            f"Medians in {first.dtype}, B={sizes}.",
            f"Measured on a shared server, {first.device}, {first.clock}, torch {first.torch}.",
            "The film part is the layer with an SSM and an FFN that do nothing.",
        ]
    )


if __name__ == "__main__":
    print(markdown(from_csv(KEPT.read_text(encoding="utf-8"))))
