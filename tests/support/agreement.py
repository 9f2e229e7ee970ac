"""Compare our marks with those of lmms-eval's own functions on random answers, in an environment that has both.

    python tests/support/agreement.py [--answers 1000] [--seed 0]

Prints a table of Markdown; exit code 1 where one mark differs. `make test-harness` runs it.
"""

import argparse
import copy
import random
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from firebolt_vl.evaluate.benchmarks import BENCHMARKS
from firebolt_vl.evaluate.metrics.vqa import vqa_accuracy
from firebolt_vl.files.tables import markdown_table

_WORDS = """
yes|no|Yes.|No,|y|n|not|A|B.|(C)|D:|(A)|a|the|an|E|C)|B,|(b).|:A|two|2|10|none|1,000|3.5|-4|1e3|=|is|so|answer
therefore|final|result|The|cat|dog|red car|dont|it's|couldnt've|t-shirt|black/white|u.s.|. |What?|best|option|_|'ows'at
The best answer is|Best answer:|apple|pear|moon|sun|cloud|star
"""
WORDS = [*(word for line in _WORDS.strip().splitlines() for word in line.split("|")), "\n"]
OPTIONS = ["sun", "a moon", "cloud", "star"]


class Row:
    """A random document of a benchmark, with its answer."""

    def __init__(self, chance: random.Random):
        self.chance = chance

    def answer(self) -> str:
        count = self.chance.choice([1, 1, 1, 2, 3, 5, 8, 14])
        return " ".join(self.chance.choice(WORDS) for _ in range(count))

    def letter(self) -> str:
        return self.chance.choice("ABCD")


def vqav2(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

    pool = [row.answer() for _ in range(row.chance.choice([1, 2, 4]))]
    answers = [row.chance.choice(pool) for _ in range(10)]
    got = row.chance.choice([*pool, row.answer()])
    document = {"question_id": 1, "answers": [{"answer": one, "answer_id": i} for i, one in enumerate(answers)]}
    return vqa_accuracy(got, answers, "harness"), vqav2_process_results_val(document, [got])["exact_match"]


def pope(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.pope.utils import pope_process_results

    got, wanted = row.chance.choice([row.answer(), "Yes", "no", " NO "]), row.chance.choice(["yes", "no"])
    document = {"question_id": 1, "answer": wanted}
    return _mark("pope", got, wanted, {}), pope_process_results(document, [got])["pope_accuracy"]["score"]


def mme(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.mme.utils import mme_process_results

    got, wanted = row.answer(), row.chance.choice(["yes", "no"])
    document = {"question_id": 1, "answer": wanted, "category": "count"}
    (theirs,) = mme_process_results(document, [got]).values()
    return _mark("mme", got, wanted, {}), theirs["score"]


def mmmu(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.mmmu.utils import (
        eval_multi_choice,
        eval_open,
        parse_multi_choice_response,
        parse_open_response,
    )

    from firebolt_vl.evaluate.metrics.mmmu import choice_of, open_is_right

    got = row.answer()
    if row.chance.random() < 0.5:
        wanted = row.chance.choice([row.answer(), "2", "1000", "cat", ["two", "2"]])
        return open_is_right(got, wanted), eval_open(wanted, parse_open_response(got))
    by_letter, wanted = dict(zip("ABCD", OPTIONS)), row.letter()
    ours = choice_of(got, OPTIONS)
    if ours is None:  # theirs is a random letter then
        theirs = {parse_multi_choice_response(got, list(by_letter), by_letter) for _ in range(60)}
        return True, len(theirs) > 1
    return ours == wanted, eval_multi_choice(wanted, parse_multi_choice_response(got, list(by_letter), by_letter))


def ai2d(row: Row) -> tuple[Any, Any]:
    from lmms_eval.api.metrics import exact_match_hf_evaluate
    from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter

    got, wanted = row.answer().strip(), row.letter()
    kept = MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\.").apply([[got]], [{"question": "q"}])
    theirs = exact_match_hf_evaluate(kept, [wanted], ignore_case=True, ignore_punctuation=True)
    return _mark("ai2d", got, wanted, {}), float(theirs["exact_match"])


def scienceqa(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results

    got, number = row.answer(), row.chance.randrange(4)
    theirs = sqa_process_results({"choices": OPTIONS, "answer": number}, [got])["exact_match"]
    return _mark("scienceqa", got, "ABCD"[number], {}), theirs


def mmbench(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    from firebolt_vl.evaluate.metrics.letters import mmbench_letter

    got, options = row.answer(), dict(zip("ABCD", OPTIONS))
    theirs = MMBench_Evaluator().can_infer(got, copy.copy(options))
    return mmbench_letter(got, options), theirs or None


def mvbench(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.mvbench.utils import mcq_acc

    got, wanted = row.answer(), row.letter()
    return _mark("mvbench", got, wanted, {}), mcq_acc(wanted, got)


def video_mme(row: Row) -> tuple[Any, Any]:
    from lmms_eval.tasks.videomme.utils import extract_characters_regex

    from firebolt_vl.evaluate.metrics.letters import video_mme_letter

    got = row.answer()
    return video_mme_letter(got), extract_characters_regex(got) or None


COMPARED: dict[str, Callable[[Row], tuple[Any, Any]]] = {
    "vqav2": vqav2,
    "pope": pope,
    "mme": mme,
    "mmmu": mmmu,
    "ai2d": ai2d,
    "scienceqa": scienceqa,
    "mmbench": mmbench,
    "mvbench": mvbench,
    "video-mme": video_mme,
}


def _mark(name: str, got: str, wanted: Any, about: dict) -> float:
    return BENCHMARKS[name].mark(got, wanted, about).score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, differ = [], 0
    for name, compare in COMPARED.items():
        chance = random.Random(f"{options.seed} {name}")
        different = right = 0
        try:
            for _ in range(options.answers):
                ours, theirs = compare(Row(chance))
                different += ours != theirs if not isinstance(ours, float) else abs(ours - theirs) > 1e-9
                right += bool(ours)
        except ImportError as error:
            rows.append([name, "-", "-", f"not compared: {error}"])
            continue
        differ += different
        rows.append([name, options.answers, right, different])
    print(f"lmms-eval {version('lmms-eval')}, seed {options.seed}\n")
    print(markdown_table(["benchmark", "random answers", "with a score or a letter", "marks that differ"], rows))
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
