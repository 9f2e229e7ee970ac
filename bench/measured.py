"""The table of measured ratios in docs/kernels.md, from the kept points: `python -m firebolt_vl.bench.measured`."""

from collections.abc import Sequence
from pathlib import Path

from ..files.tables import markdown_table
from .kernels import Point, from_csv, speed_ups

KEPT = Path(__file__).resolve().parents[1] / "docs" / "kernels.csv"
MODES = {"forward": "forward", "both": "forward + backward"}
# What a user's time goes into: the layer, its parts, and the op whose plain formula needs N L exponentials a channel.
OPS = ("cmm", "vandermonde")
VANDERMONDE = "D=1024 N=32 "  # the sizes of it that are shown: one width, all lengths


def markdown(points: Sequence[Point]) -> str:
    """Times of the layer and of Vandermonde products, by their equations and as they run here, on a CPU."""
    rows = []
    shown = [point for point in points if point.op in OPS and point.mode in MODES]
    shown = [point for point in shown if point.op != "vandermonde" or point.sizes.startswith(VANDERMONDE)]
    for row in speed_ups(sorted(shown, key=lambda point: OPS.index(point.op))):
        found, ratios = row["points"], row["speed_ups"]
        if "eager" not in found:
            continue
        name = row["sizes"] if row["op"] == "cmm" else f"{row['op']} {row['sizes']}"
        times = (
            f"{found[provider].median_ms:.{0 if found['ours'].median_ms >= 10 else 1}f} ms"
            for provider in ("eager", "ours")
        )
        faster = f"{ratios['eager']:.1f}" if ratios else "its check is red"
        linear = f"{1 / ratios['linear maps']:.2f}" if ratios and "linear maps" in ratios else ""
        rows.append([f"{_shortened(name)}, {MODES[row['mode']]}", *times, faster, linear])
    first = points[0]
    return "\n".join(
        [
            markdown_table(["", "equations", "ours", "times faster", "of its linear maps"], rows),
            "",
            f"Medians in {first.dtype}; in the layer G=5, K=4, D_v=768, H=4, D_h=32.",
            f"Measured on a shared server, {first.device}, {first.clock}, torch {first.torch}.",
            "The film part is the layer with an SSM and an FFN that do nothing. The equations of the S4 block are the",
            "generating function by the plain Cauchy sum, and torch.fft. Linear maps: those of the FFN and of the GLU,",
            "as torch.nn.Linear computes them.",
        ]
    )


def _shortened(name: str) -> str:
    """Leave out the sizes that all rows of the layer share."""
    return name.replace(" G=5 K=4", "").replace(" D_v=768 H=4 D_h=32", "")


if __name__ == "__main__":
    print(markdown(from_csv(KEPT.read_text(encoding="utf-8"))))
