"""docs/evaluation.md: its Python runs, its commands are known, its table names every benchmark."""

import re
import shlex
from pathlib import Path

from typer.main import get_command

from firebolt_vl.cli import app
from firebolt_vl.evaluate.benchmarks import IMAGE_BENCHMARKS

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_what_the_page_says_of_the_metrics_is_what_they_return():
    names: dict = {}
    checked = 0
    for code in blocks("python"):
        for line in code.splitlines():
            call, _, told = line.partition("  # ")
            if not told:
                exec(line, names)
                continue
            assert eval(call, names) == float(told.split(":")[0])
            checked += 1
    assert checked == 2


def test_commands_of_the_page_are_known_with_their_options():
    known = get_command(app).commands["eval"].commands
    for line in (line for code in blocks("sh") for line in code.splitlines()):
        command, group, name, *rest = shlex.split(line, comments=True)
        assert (command, group) == ("firebolt", "eval")
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options


def test_every_benchmark_is_in_the_table_with_its_columns():
    for benchmark in IMAGE_BENCHMARKS:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{benchmark.name}` |"))
        assert all(re.search(rf"\b{column}\b", row) for column in benchmark.columns)
