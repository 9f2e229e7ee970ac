"""Command `firebolt ask`: one question with its answer as it is made, or a file of them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import Failure, Misuse
from .options import AsJson, Checkpoint, Device, Dtype, Engine, OfWeights, OnDevice, Overwrite, Quantized
from .shown import in_words, new_console, note, percent, show_facts

if TYPE_CHECKING:
    from .batch import Done


def ask(
    asked: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="One image or video file, or several of them, then what you want to know, in quotes.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="QUESTIONS.jsonl",
            help='Answer many questions, one JSON object a line: {"image": "a.png", "question": "...", "id": ...}. '
            "image may be a list, of videos too, or absent in a question about none; it is looked for beside the file. "
            "id is the line number by default.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="ANSWERS.jsonl",
            help="Where the answers of --batch go. Started again after any kind of end, it answers what is not there.",
        ),
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Go on in a file with answers of another model or of other settings.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many questions of --batch at a time. Default: 8.")
    ] = None,
    checkpoint: Checkpoint = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The answer's longest length in tokens.")] = 128,
    grounding: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.png",
            help="Write a picture of what the answer rests on, and of what each word of the question weighed.",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="Frames of a video, spread over it. Default: one a second, at most 64."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    device: OnDevice = Device.auto,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sample the answer, with this seed. Default: the most likely words, no chance."),
    ] = None,
    dtype: OfWeights = Dtype.auto,
    quantize: Quantized = None,
    compile_step: Annotated[
        bool, typer.Option("--compile", help="torch.compile the generation step: the first answer waits for it.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="What computes; others take a folder of firebolt export. onnx, openvino: no PyTorch.")
    ] = Engine.torch,
) -> None:
    """Answer a question about an image, a video or several of them, or with --batch many questions.

    A question may not spell the model's control tokens (such as <|im_end|>): it would forge turns, and is refused.
    """
    how = {"checkpoint": checkpoint, "max_new_tokens": max_new_tokens, "device": device.value, "seed": seed}
    how |= {"dtype": dtype.value, "quantize": quantize and quantize.value, "compile_step": compile_step}
    if engine is not Engine.torch:
        others = {"--batch": batch, "--grounding": grounding, "--seed": seed, "--quantize": quantize}
        others |= {"--frames": frames}
        others |= {"--compile": compile_step or None, "--device": None if device is Device.auto else device}
        for name, value in {**others, "--dtype": None if dtype is Dtype.auto else dtype}.items():
            if value is not None:
                raise Misuse(f"{name} is given with --engine {engine}; leave it out, or say --engine torch")
    if batch is not None:
        alone = {"IMAGE": asked or None, "--grounding": grounding, "--frames": frames}
        for name, value in {**alone, "--overwrite": overwrite or None}.items():
            if value is not None:
                raise Misuse(f"{name} is given with --batch; expected one of them")
        if out is None:
            raise Misuse("--batch is given without --out; expected --out ANSWERS.jsonl too, where the answers go")
        _ask_many(batch, out, batch_size or 8, as_json, {**how, "mixed": mixed})
        return
    for name, value in {"--out": out, "--batch-size": batch_size, "--mixed": mixed or None}.items():
        if value is not None:
            raise Misuse(f"{name} is given without --batch; leave it out")
    if not asked or len(asked) < 2:
        raise Misuse(f"{'QUESTION' if asked else 'IMAGE'} is missing; see firebolt ask --help")
    *images, question = asked
    if _is_file(question):
        raise Misuse(f"QUESTION is missing: {question} is a file; expected what you want to know, after the images")
    if engine is not Engine.torch:
        from .ask_engine import ask_engine

        if len(images) > 1:
            raise Misuse(f"several images are given with --engine {engine}; expected one, or --engine torch")
        speech = None if as_json else _Speech(question)
        reply = ask_engine(images[0], question, engine.value, checkpoint, max_new_tokens, speech)
        if speech is None:
            print(json.dumps(reply.to_dict()))
        else:
            speech.conclude(reply)
        return
    from .ask import ask as answer

    how |= {"grounding": grounding, "frames": frames, "overwrite": overwrite, "note": note}
    if as_json:
        print(json.dumps(answer(images, question, **how).to_dict()))
        return
    speech = _Speech(question)
    # With a picture to follow nothing is said before all is done: where the picture fails there is no answer.
    speech.conclude(answer(images, question, say=None if grounding else speech, **how))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than any name, or with a NUL in it
        return False


def _ask_many(batch: str, out: str, batch_size: int, as_json: bool, how: dict) -> None:
    from .batch import answer_file
    from .progress import progress_bar
    from .ranks import this_rank

    def report(problem: str) -> None:
        print(problem, file=sys.stderr, flush=True)

    with progress_bar("answering", this_rank().leads) as progress:
        done = answer_file(batch, out, batch_size=batch_size, progress=progress, report=report, **how)
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        _show_done(out, done)
    # Where one of several processes fails, a launcher ends the others: the last one tells of all their rows.
    bad, questions = done.bad, done.questions
    if done.part is not None:
        bad, questions = (done.joined.bad, done.joined.answers + done.joined.bad) if done.joined is not None else (0, 0)
    if bad:
        raise Failure(f"{bad} of {questions} questions could not be answered; see {done.problems}")


def _show_done(out: str, done: "Done") -> None:
    """Tell what one process did, in one write, since others write there too."""
    rate = f", {done.tokens / done.seconds:.0f} tokens/s" if done.tokens else ""
    lines = [
        f"{done.part or out}: {done.answered} answered in {in_words(done.seconds)}{rate}, {done.before} were there "
        f"before, {done.bad} could not be answered\n"
    ]
    if done.joined is not None:
        lines.append(f"{out}: {done.joined.answers} answered by all parts, {done.joined.bad} could not be answered\n")
    sys.stdout.write("".join(lines))


class _Speech:
    """An answer on the terminal while it is being made: nothing is printed before its first piece is there."""

    def __init__(self, question: str):
        self.console, self.question, self.begun = new_console(), question, False

    def __call__(self, piece: str) -> None:
        from rich.text import Text

        if not self.begun:
            self.console.print(Text(self.question, "bold"))
        self.begun = True
        self.console.print(Text(piece, "bold dark_orange"), end="")

    def conclude(self, reply) -> None:
        self.question = reply.question
        if not self.begun:
            self(reply.answer or "(an empty answer)")
        self.console.print()
        _show_reply(reply, self.console)


def _show_reply(reply, console) -> None:
    timing = reply.timing
    _show_doubts(reply, console)
    facts = [
        *([f"probability {percent(reply.probability)}"] if reply.probability is not None else []),
        f"loaded in {in_words(timing.load_s)}",
        f"first token after {in_words(timing.first_token_s)}",
        f"{reply.answer_tokens} token{'s' if reply.answer_tokens > 1 else ''} in {in_words(timing.total_s)}",
        *([f"{timing.tokens_per_s:.0f} tokens/s"] if timing.tokens_per_s else []),
        f"{reply.device}, {', '.join(filter(None, (reply.dtype, reply.quantize)))}",
    ]
    picture = None if reply.grounding is None else f"where it comes from: {reply.grounding.picture}"
    show_facts(reply, facts, picture, console)


def _show_doubts(reply, console) -> None:
    from rich.text import Text

    for doubt in reply.doubts:
        console.print(Text(f"a guess: {doubt}", "yellow"))
    if reply.knows is not None:
        console.print(Text(f"(the small model {Path(reply.checkpoint).name}: {reply.knows})", "dim"))
