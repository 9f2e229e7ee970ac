"""Run our model inside lmms-eval and beside it, offline, and compare predictions and scores: `make test-harness`.

lmms-eval's requirements exclude some of ours, so it gets a virtual environment of its own in out/harness, with the
package installed as a user does. Two tasks over small parquet files of drawn digits run there with the embedded model,
through `lmms-eval --model firebolt` and through `firebolt eval`; then our marks are compared with lmms-eval's own on
random answers (tests/support/agreement.py). What was found is printed and, with --out, written as a page; exit code 1
where something differs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# It reaches into filelock, whose inside moved after 3.20.
HARNESS = ("lmms-eval==0.7.3", "filelock==3.20.*")
ROWS, BATCH = 40, 8
TASKS = ("firebolt_pope", "firebolt_own")
YES_NO = "is there"

# Run in that environment: rows of both tasks as parquet, for lmms-eval, and as JSON lines with images beside them.
MAKE_ROWS = f"""
import io, json, sys
from pathlib import Path
import datasets
from firebolt_vl.evaluate.digits import draw
from firebolt_vl.evaluate.exam import pose

folder = Path(sys.argv[1])
scenes, asked = pose(120, 0, "held-out")
rows = {{"pope": [], "own": []}}
for number, one in enumerate(asked):
    kind = "pope" if one.question.kind == {YES_NO!r} else "own"
    if len(rows[kind]) < {ROWS}:
        name = f"{{kind}}-{{number}}.png"
        draw(scenes[one.scene], 128).save(folder / name)
        row = {{"id": number, "question_id": str(number), "question": one.question.text, "answer": one.question.answer}}
        rows[kind].append({{**row, "category": "random", "image": name}})
for kind, found in rows.items():
    (folder / f"{{kind}}.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in found))
    stored = [{{**row, "image": {{"bytes": (folder / row["image"]).read_bytes(), "path": None}}}} for row in found]
    kinds = {{name: datasets.Value("int64" if name == "id" else "string") for name in found[0]}}
    features = datasets.Features(kinds | {{"image": datasets.Image()}})
    columns = {{name: [row[name] for row in stored] for name in found[0]}}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{{kind}}.parquet")
"""

# A task of lmms-eval: the file's rows, its own metrics of POPE, or an exact match that ignores case and punctuation.
TASK = """
task: firebolt_{kind}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.{kind}_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  do_sample: false
{metrics}
"""
METRICS = {
    "pope": "process_results: !function utils.pope_process_results\nmetric_list:\n"
    + "\n".join(
        f"  - metric: pope_{name}\n    aggregation: !function utils.pope_aggregate_{name}\n    higher_is_better: true"
        for name in ("accuracy", "precision", "recall", "f1_score")
    ),
    "own": "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    "    ignore_case: true\n    ignore_punctuation: true",
}
UTILS = """
from lmms_eval.tasks.pope.utils import *


def visual(doc):
    return [doc["image"].convert("RGB")]


def pope_text(doc):
    return doc["question"].strip() + "\\nAnswer the question using a single word or phrase."


def own_text(doc):
    return doc["question"]
"""
SAME_SCORES = {
    "pope": {
        "pope_accuracy": "accuracy",
        "pope_precision": "precision",
        "pope_recall": "recall",
        "pope_f1_score": "f1",
    },
    "own": {"exact_match": "score"},
}


def install(folder: Path, torch_index: str | None) -> Path:
    """Make the environment where it is not there yet; returns its folder of programs."""
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
        torch = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
        index = ["--index-url", torch_index] if torch_index else []
        for arguments in ([*index, torch], [*HARNESS, f"{ROOT}[eval]", "scikit-learn"]):
            subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *arguments], check=True)
        # A torchvision that does not fit its torch stops every import of transformers; nothing here needs it.
        if subprocess.run([programs / "python", "-c", "import torchvision"], capture_output=True).returncode:
            subprocess.run(
                [programs / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True
            )
        (folder / "ready").touch()
    return programs


def run_harness(programs: Path, folder: Path) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """Each task's answers by id, and its scores."""
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "utils.py").write_text(UTILS)
    for kind, metrics in METRICS.items():
        text = TASK.format(kind=kind, file=folder / f"{kind}.parquet", metrics=metrics)
        (tasks / f"firebolt_{kind}.yaml").write_text(text)
    arguments = [
        "--model",
        "firebolt",
        "--model_args",
        "pretrained=tiny",
        "--tasks",
        ",".join(TASKS),
        "--device",
        "cpu",
    ]
    arguments += [
        "--include_path",
        tasks,
        "--batch_size",
        str(BATCH),
        "--log_samples",
        "--output_path",
        folder / "theirs",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    subprocess.run([programs / "python", "-m", "lmms_eval", *arguments], check=True, env={**os.environ, **offline})
    newest = max((folder / "theirs").rglob("*_results.json"), key=lambda file: file.stat().st_mtime)
    results = json.loads(newest.read_text())["results"]
    found = {}
    for kind in METRICS:
        samples = max(
            (folder / "theirs").rglob(f"*_samples_firebolt_{kind}.jsonl"), key=lambda file: file.stat().st_mtime
        )
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        answers = {str(row["doc_id"]): _text(row["filtered_resps"]) for row in rows}
        scores = {name.split(",")[0]: value for name, value in results[f"firebolt_{kind}"].items()}
        found[kind] = answers, scores
    return found


def _text(answer: str | list) -> str:
    """The text of an answer, which lmms-eval writes in lists or alone."""
    while isinstance(answer, list):
        answer = answer[0]
    return answer.strip()


def run_ours(programs: Path, folder: Path) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """The same through `firebolt eval`, answers by their rows' numbers from 0."""
    found = {}
    for kind in METRICS:
        rows = folder / f"{kind}.jsonl"
        data = [rows] if kind == "own" else ["--data", rows]
        arguments = ["eval", kind, *data, "--out", folder / "ours", "--max-new-tokens", "16", "--json"]
        command = [programs / "firebolt", *arguments, "--batch-size", str(BATCH), "--device", "cpu"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        numbers = {json.loads(line)["id"]: str(i) for i, line in enumerate(rows.read_text().splitlines())}
        lines = (folder / "ours" / f"{kind}.predictions.jsonl").read_text().splitlines()
        answers = {numbers[row["id"]]: row["got"].strip() for row in map(json.loads, lines)}
        found[kind] = answers, json.loads(told.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "harness")
    parser.add_argument("--torch-index", help="of pip, for torch alone")
    parser.add_argument("--out", type=Path, help="a page of Markdown")
    options = parser.parse_args()
    folder = options.folder.resolve()
    programs = install(folder, options.torch_index)
    subprocess.run([programs / "python", "-c", MAKE_ROWS, folder], check=True)
    theirs, ours = run_harness(programs, folder), run_ours(programs, folder)
    lines, good = (
        ["| task | rows | answers that differ | score | lmms-eval | firebolt eval |", "| --- " * 6 + "|"],
        True,
    )
    for kind, names in SAME_SCORES.items():
        differ = sum(theirs[kind][0].get(row) != answer for row, answer in ours[kind][0].items())
        good &= not differ and len(theirs[kind][0]) == len(ours[kind][0]) == ROWS
        for their_name, name in names.items():
            one, other = theirs[kind][1][their_name], ours[kind][1][name]
            good &= abs(one - other) < 1e-6
            lines.append(f"| {kind} | {len(ours[kind][0])} | {differ} | {name} | {one:.4f} | {other:.4f} |")
    agreement = subprocess.run(
        [programs / "python", Path(__file__).with_name("agreement.py")], capture_output=True, text=True
    )
    good &= agreement.returncode == 0
    page = "\n".join(
        [
            "# Beside lmms-eval",
            "",
            "Written by `make test-harness`: the embedded model through lmms-eval and through `firebolt eval`, on the",
            "same rows of drawn digits, and our marks beside those of lmms-eval's own functions on random answers.",
            "",
            *lines,
            "",
            agreement.stdout.strip() or agreement.stderr.strip(),
            "",
        ]
    )
    print(page)
    if options.out is not None and good:
        options.out.write_text(page)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
