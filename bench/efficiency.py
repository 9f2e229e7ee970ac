"""The table of whole answers in docs/generation.md, from the kept rows.

`python -m firebolt_vl.bench.efficiency [FILE]`: with a file it is written between that file's
markers; without one it is printed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..files.tables import markdown_table
from ..files.writing import write_text
from .answer import IN_PYTORCH, Row, from_csv

KEPT = Path(__file__).resolve().parents[1] / "docs" / "answer.csv"
BEGIN, END = "<!-- efficiency -->", "<!-- end of efficiency -->"
COMMAND = "firebolt bench answer --peers --dtype float32 --dtype bfloat16 --new-tokens 256 --out docs"
# Table 2 of the paper (arXiv 2604.04579): one H100, 256 tokens, questions of POPE.
PAPER = (
    ("Firebolt-VL", "40.08 ms", "46.67"),
    ("MobileVLM-V2", "46.04 ms", "42.86"),
    ("SmolVLM2", "65.72 ms", "37.80"),
)


def markdown(rows: Sequence[Row]) -> str:
    """The table, what it was measured on, and the paper's figures beside it."""
    first = rows[0]
    table = markdown_table(
        [
            "",
            "dtype",
            "first token",
            "tokens/s",
            f"{first.new_tokens} tokens",
            "peak memory",
            "on disk",
            "tokens/s the memory allows",
            "share of them",
        ],
        [
            [
                row.name,
                row.dtype,
                f"{row.first_token_s:.2f} s",
                f"{row.decode_tok_s:.1f}",
                f"{row.answer_s:.1f} s",
                f"{row.peak_mb:,.0f} MB",
                f"{row.disk_mb:,.0f} MB" if row.disk_mb else "",
                f"{row.floor_tok_s:.1f}",
                f"{100 * row.decode_tok_s / row.floor_tok_s:.0f} %",
            ]
            for row in rows
        ],
        left=2,
    )
    return "\n".join(
        [
            table,
            "",
            f"Medians, full-size models with random weights, batch 1, a 640 x 480 photo and 32 tokens of text; on a "
            f"shared server, {first.device}, {first.threads} threads, torch {first.torch}.",
            "",
            *_contents(rows),
            markdown_table(["the paper, one H100", "latency", "tokens/s"], PAPER),
        ]
    )


def _contents(rows: Sequence[Row]) -> list[str]:
    """Say what the rows of engines in processes of their own contain."""
    names = {row.contains: row.name for row in rows if row.contains and row.contains != IN_PYTORCH}
    for contains in names:
        names[contains] = ", ".join(dict.fromkeys(row.name for row in rows if row.contains == contains))
    return [line for contains, who in names.items() for line in (f"{who}: {contains}.", "")]


def written(page: str, rows: Sequence[Row]) -> str:
    """The text of `page` with the table between its markers. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"written: page has no place for the table; expected the lines {BEGIN} and {END} around it")
    by = f"<!-- {COMMAND}; python -m firebolt_vl.bench.efficiency docs/generation.md -->"
    return f"{before}{BEGIN}\n{by}\n{markdown(rows)}\n{END}{after}"


if __name__ == "__main__":
    kept = from_csv(KEPT.read_text(encoding="utf-8"))
    if len(sys.argv) > 1:
        file = Path(sys.argv[1])
        write_text(file, written(file.read_text(encoding="utf-8"), kept))
    else:
        print(markdown(kept))
