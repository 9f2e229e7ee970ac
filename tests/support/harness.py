"""Run our model inside lmms-eval and beside it, offline, and compare predictions and scores: `make test-harness`.

lmms-eval's requirements exclude some of ours, so it gets a virtual environment of its own in out/harness, with the
package installed as a user does. Two tasks over small parquet files of drawn digits run there with the embedded model,
through `lmms-eval --model firebolt` and through `firebolt eval`, and one over clips with a foveated model of random
weights, through `--model firebolt_foveated`; then our marks are compared with lmms-eval's own on random answers
(tests/support/agreement.py). What was found is printed and, with --out, written as a page; exit code 1 where something
differs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# It reaches into filelock, whose inside moved after 3.20.
HARNESS = ("lmms-eval==0.7.3", "filelock==3.20.*")
ROWS, BATCH = 40, 8
CLIPS, CLIP_ROWS, FRAMES = 3, 6, 4
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
clips = [json.loads(line) for line in (folder / "mvbench.jsonl").read_text().splitlines()]
datasets.Dataset.from_list(clips).to_parquet(folder / "mvbench.parquet")
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
doc_to_visual: !function utils.{kind}_visual
doc_to_text: !function utils.{kind}_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  do_sample: false
{metrics}
"""
EXACT = """metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true"""
METRICS = {
    "pope": "process_results: !function utils.pope_process_results\nmetric_list:\n"
    + "\n".join(
        f"  - metric: pope_{name}\n    aggregation: !function utils.pope_aggregate_{name}\n    higher_is_better: true"
        for name in ("accuracy", "precision", "recall", "f1_score")
    ),
    "own": EXACT,
    "mvbench": EXACT,
}
UTILS = """
from lmms_eval.tasks.pope.utils import *


def pope_visual(doc):
    return [doc["image"].convert("RGB")]


own_visual = pope_visual


def mvbench_visual(doc):
    return [doc["path"]]


def mvbench_text(doc):
    options = "\\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", doc["candidates"]))
    return f"Question:{doc['question']}\\nOption:\\n{options}\\nOnly give the best option."


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
    "mvbench": {},  # letters in the answers of random weights
}


class Examined(NamedTuple):
    """A model as lmms-eval and `firebolt eval` name it, and its tasks."""

    model: str
    arguments: str
    kinds: tuple[str, ...]
    options: tuple[str, ...]
    """Of `firebolt eval`."""


def examined(folder: Path) -> list[Examined]:
    foveated = folder / "foveated"
    options = ("--checkpoint", str(foveated), "--video-root", str(folder), "--frames", str(FRAMES))
    return [
        Examined("firebolt", "pretrained=tiny", ("pope", "own"), ("--batch-size", str(BATCH))),
        Examined("firebolt_foveated", f"pretrained={foveated},frames={FRAMES}", ("mvbench",), options),
    ]


def write_clips(folder: Path) -> None:
    """A small foveated model, clips, and questions about them in MVBench's columns."""
    from foveated import write_foveated
    from videos import write_video

    write_foveated(folder / "foveated")
    for number in range(CLIPS):
        write_video(folder / f"{number}.mp4", 2 + number, 5)
    rows = []
    for number in range(CLIP_ROWS):
        name, candidates = f"{number % CLIPS}.mp4", ["a cup", "a ball", "nothing"]
        row = {"id": number, "video": name, "path": str(folder / name), "question": f"What falls at {number}?"}
        rows.append({**row, "candidates": candidates, "answer": candidates[number % 3], "task": "count"})
    (folder / "mvbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", ROOT]
    subprocess.run(install, check=True)  # as it is now
    return programs


def run_harness(programs: Path, folder: Path, one: Examined) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """Each task's answers by id, and its scores."""
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "utils.py").write_text(UTILS)
    for kind in one.kinds:
        metrics = METRICS[kind]
        text = TASK.format(kind=kind, file=folder / f"{kind}.parquet", metrics=metrics)
        (tasks / f"firebolt_{kind}.yaml").write_text(text)
    arguments = [
        "--model",
        one.model,
        "--model_args",
        one.arguments,
        "--tasks",
        ",".join(f"firebolt_{kind}" for kind in one.kinds),
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
    for kind in one.kinds:
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


def run_ours(programs: Path, folder: Path, one: Examined) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """The same through `firebolt eval`, answers by their rows' numbers from 0."""
    found = {}
    for kind in one.kinds:
        rows = folder / f"{kind}.jsonl"
        data = [rows] if kind == "own" else ["--data", rows]
        arguments = ["eval", kind, *data, "--out", folder / "ours", "--max-new-tokens", "16", "--json"]
        command = [programs / "firebolt", *arguments, *one.options, "--device", "cpu"]
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
    write_clips(folder)
    subprocess.run([programs / "python", "-c", MAKE_ROWS, folder], check=True)
    theirs, ours = {}, {}
    for one in examined(folder):
        theirs |= run_harness(programs, folder, one)
        ours |= run_ours(programs, folder, one)
    lines, good = (
        ["| task | rows | answers that differ | score | lmms-eval | firebolt eval |", "| --- " * 6 + "|"],
        True,
    )
    for kind, names in SAME_SCORES.items():
        differ = sum(theirs[kind][0].get(row) != answer for row, answer in ours[kind][0].items())
        good &= not differ and len(theirs[kind][0]) == len(ours[kind][0]) == (CLIP_ROWS if kind == "mvbench" else ROWS)
        if not names:
            lines.append(f"| {kind} | {len(ours[kind][0])} | {differ} | - | - | - |")
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
            "same rows of drawn digits, a foveated model of random weights on the same clips (mvbench), and our marks",
            "beside those of lmms-eval's own functions on random answers.",
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
