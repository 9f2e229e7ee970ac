"""Many questions on several workers, or machines: a pipeline of Ray Data whose actors load the model once.

    pip install 'ray[data]'
    python examples/bulk_ray.py questions.jsonl answers.jsonl --workers 2

Files are those of `firebolt ask --batch` (docs/asking.md): either goes on with what the other left. RAY_ADDRESS names
a cluster, whose machines see the folder of the images. Ray starts a worker that died again and gives others its rows.
Answers are appended here, by the driver alone, as they come: each row is there whole and once, whoever is killed, and
the same command started again answers what is missing.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from firebolt_vl.answer_files import Answer, Problem, Question, read_questions
from firebolt_vl.ask import ignore_settings
from firebolt_vl.batch import Answering
from firebolt_vl.checkpoint import choose_device, load, locate, quiet
from firebolt_vl.errors import Failure
from firebolt_vl.evaluate.familiar import read_familiar
from firebolt_vl.identity import answered_by
from firebolt_vl.model.video import open_image_or_video
from firebolt_vl.parts import Output
from firebolt_vl.ranks import ALONE

MOST_BLOCKS = 10_000


class Answerer:
    """A model at work on batches: what an actor holds. A row is a JSON text, since its id may be of either type."""

    def __init__(self, folder: str, base: str, max_new_tokens: int, by: dict):
        with quiet():
            loaded = load(Path(folder), choose_device("auto"))
            ignore_settings(loaded, None, lambda line: None)
        self.by = {**by, "dtype": str(loaded.model.dtype).removeprefix("torch.")}
        opened = lambda name: open_image_or_video(Path(base) / name)  # noqa: E731
        self.answering = Answering(loaded, opened, max_new_tokens, familiar=read_familiar(Path(folder)))

    def __call__(self, batch: dict) -> dict:
        """Answer {"row": questions}: {"row": an answer's line, "key": which question, "problem": what is wrong}."""
        rows = [Question(*json.loads(text)) for text in batch["row"]]
        with quiet():
            found = self.answering.answer(rows)
        return {
            "key": [row.key for row in rows],
            "row": [one.to_json(self.by) if isinstance(one, Answer) else "" for one in found],
            "problem": [json.dumps(one) if isinstance(one, Problem) else "" for one in found],
        }


def main(questions: str, out: str, checkpoint: str | None, workers: int, gpus: float, size: int, tokens: int) -> int:
    """Answer what is missing, and return how many rows could not be answered."""
    # It would tell its makers of each start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise Failure("bulk_ray.py needs ray; pip install 'ray[data]'") from None

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = locate(checkpoint)
    asked, bad = read_questions(questions)
    by = answered_by(folder, checkpoint, "auto", None, None, tokens)
    with Output(questions, out, asked, bad, ALONE, report) as output:
        there = output.check(by, mixed=False)

        def refuse(problem: Problem) -> None:
            output.problems.add(problem)
            report(f"{questions}:{problem.line}: {problem.error}")

        for problem in bad:
            refuse(problem)
        todo = [{"row": json.dumps(row)} for row in asked if row.key not in there]
        print(f"{len(there)} were there before, {len(todo)} to go", flush=True)
        if todo:
            blocks = min(MOST_BLOCKS, -(-len(todo) // size))
            arguments = (str(folder), str(Path(questions).parent.resolve()), tokens, by)
            answers = ray.data.from_items(todo, override_num_blocks=blocks).map_batches(
                Answerer,
                fn_constructor_args=arguments,
                batch_size=size,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
                num_gpus=gpus,
            )
            for batch in answers.iter_batches(batch_size=None):
                found = zip(*(batch[name].tolist() for name in ("key", "row", "problem")))
                new = {key: (row, problem) for key, row, problem in found if key not in there}
                output.file.append([row for row, problem in new.values() if row])
                for _, problem in new.values():
                    if problem:
                        refuse(Problem(*json.loads(problem)))
                there |= new.keys()
        bad_rows = output.problems.count
    output.join()
    print(f"{out}: {len(asked) + len(bad) - bad_rows} of {len(asked) + len(bad)} questions are answered")
    return bad_rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", help="JSON lines")
    parser.add_argument("answers", help="JSON lines")
    parser.add_argument("--checkpoint", help="a folder that all machines have, or an id; default: the embedded model")
    parser.add_argument("--workers", type=int, default=2, help="how many load the model, at most")
    parser.add_argument("--gpus", type=float, default=0, help="for each worker")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    given = parser.parse_args()
    try:
        how = given.checkpoint, given.workers, given.gpus, given.batch_size, given.max_new_tokens
        sys.exit(1 if main(given.questions, given.answers, *how) else 0)
    except Failure as error:
        sys.exit(f"bulk_ray.py: {error}")
