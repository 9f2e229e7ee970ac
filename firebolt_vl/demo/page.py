"""The page itself, in gradio: what is on it, and what happens when something is done there."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr

from ..errors import Failure
from . import drawn
from .answering import PageModel
from .hearing import follow
from .pictures import ASKED, ASKED_OF_ANY, EXAMPLES
from .talk import Settings, Talk

TITLE = "Firebolt-VL"
LONGEST, MOST_LONGEST, MOST_CHARACTERS = 128, 512, 10_000
# Questions that wait at the most; whoever comes then is told so.
MOST_WAITING = 100
OF_THE_MODEL = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}


class Page:
    """A model with the one thread that it runs in: questions of all visitors are answered one after another."""

    def __init__(self, model: PageModel):
        self.model = model
        self.worker = ThreadPoolExecutor(1, "model")

    def show(self, path: str) -> tuple[Talk, str, str, str]:
        """Begin a conversation about a file: the conversation, what is shown, no words yet, and what went wrong."""
        try:
            pictures, captions = drawn.picture_urls(self.model.open(path))
        except Failure as error:
            talk = Talk()
            return talk, drawn.view(talk), "", drawn.notice(_named(error, path))
        talk = Talk(path, pictures, captions)
        return talk, drawn.view(talk), "", ""

    def show_upload(self, path: str) -> tuple[Talk, str, str, str, None]:
        """`show` an upload, and leave the place for uploads empty for the next one."""
        return *self.show(path), None

    def show_example(self, number: int) -> tuple[Talk, str, str, str, str]:
        """`show` an example, and its question."""
        name, question = self.examples()[number]
        return *self.show(str(EXAMPLES / name)), question

    def begin_again(self, talk: Talk) -> tuple[Talk, str, str, str]:
        """Forget what was said; what it was about stays."""
        talk = Talk(talk.path, talk.pictures, talk.captions, visual=talk.visual, looks=talk.looks)
        return talk, drawn.view(talk), "", ""

    def ask(
        self, question: str, talk: Talk, longest: float, seed: float | None, remember: bool
    ) -> Iterator[tuple[Talk, str, str, str, str]]:
        """Answer a question: again and again the conversation, what is shown, what was said, what is being said, and
        what is left in the line for questions."""
        if talk.path is None:
            missing = "there is no picture to ask about yet; drop one on the left, or take an example"
            yield talk, drawn.view(talk), "", drawn.notice(missing), question
            return
        before = drawn.view(talk), drawn.turns(talk)
        settings = Settings(int(longest), None if seed is None else int(seed), remember)
        yield talk, *before, drawn.speaking(question, ""), ""
        saying = follow(self.worker, lambda hear: self.model.answer(talk, question, settings, hear))
        try:
            while True:
                yield talk, *before, drawn.speaking(question, next(saying)), ""
        except StopIteration as answered:
            talk.turns.append(answered.value)
        except Failure as error:
            yield talk, *before, drawn.notice(_named(error, talk.path)), question
            return
        finally:
            saying.close()
        yield talk, drawn.view(talk), drawn.turns(talk), "", ""

    def rest_on(self, talk: Talk) -> tuple[str, str]:
        """Show what the last answer rests on, or say why not."""
        if not talk.turns:
            return drawn.view(talk), drawn.notice("nothing was answered yet; ask a question first")
        try:
            return drawn.view(talk, self.worker.submit(self.model.rests_on, talk).result()), ""
        except Failure as error:
            return drawn.view(talk), drawn.notice(_named(error, talk.path))

    def examples(self) -> list[tuple[str, str]]:
        """Pictures with a question about each."""
        if self.model.familiar is not None:
            return list(ASKED)
        return [(name, ASKED_OF_ANY) for name, _ in ASKED]

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        # No telemetry, and nothing of what was asked is kept longer than a visitor's tab is open.
        with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
            talk = gr.State(Talk())
            gr.Markdown(self._heading())
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    file = gr.File(
                        label="An image or a video",
                        file_types=["image", "video"],
                        height=150,
                        elem_id="fb-file",
                    )
                    chosen = gr.Dataset(
                        label="Examples: take one, then press Ask",
                        components=[gr.Image(render=False), gr.Textbox(render=False)],
                        samples=[[str(EXAMPLES / name), question] for name, question in self.examples()],
                        headers=["", "question"],
                        type="index",
                        elem_id="fb-examples",
                    )
                    longest, seed, remember = self._settings()
                with gr.Column(scale=1, min_width=320):
                    view = gr.HTML(drawn.view(Talk()))
                    rests = gr.Button("What does the answer rest on?", size="sm", elem_id="fb-rests")
                with gr.Column(scale=1, min_width=320):
                    question = gr.Textbox(
                        label="Your question",
                        placeholder="Ask about what is shown, and press Enter",
                        lines=1,
                        max_lines=4,
                        max_length=MOST_CHARACTERS,
                        elem_id="fb-ask",
                    )
                    with gr.Row():
                        asked = gr.Button("Ask", variant="primary", size="sm", min_width=80, elem_id="fb-go")
                        stop = gr.Button("Stop", size="sm", min_width=80, elem_id="fb-stop")
                        again = gr.Button("New conversation", size="sm", min_width=80, elem_id="fb-again")
                    # Below what is clicked, which an answer that grows would push away; the newest is nearest to it.
                    now = gr.HTML("", elem_id="fb-now")
                    said = gr.HTML("", elem_id="fb-said")

            shown = [talk, view, said, now]
            asking = gr.on(
                [question.submit, asked.click],
                self.ask,
                [question, talk, longest, seed, remember],
                [*shown, question],
                show_progress_on=now,
                trigger_mode="once",
                **OF_THE_MODEL,
            )
            resting = rests.click(self.rest_on, talk, [view, now], show_progress_on=view, **OF_THE_MODEL)
            running = [asking, resting]
            file.upload(self.show_upload, file, [*shown, file], cancels=running, show_progress="minimal")
            chosen.click(self.show_example, chosen, [*shown, question], cancels=running, show_progress="hidden")
            again.click(self.begin_again, talk, shown, cancels=running, show_progress="hidden")
            stopped = drawn.notice("stopped; nothing is kept of that answer")
            stop.click(None, cancels=running).then(lambda: stopped, None, now, show_progress="hidden")
        blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=2)
        return blocks

    def _heading(self) -> str:
        model = self.model.loaded.model
        device = f"{model.device}, {str(model.dtype).removeprefix('torch.')}"
        lines = [f"## {TITLE}: ask, and see where the answer comes from"]
        about = f"`{drawn.escaped(self.model.folder.name)}`, {model.num_parameters():,} parameters, {device}."
        if self.model.familiar is not None:
            about += f" A small model: {drawn.escaped(self.model.familiar.knows)}."
        lines.append(about)
        if self.model.weighs:
            lines.append("Point at a word of a question or an answer: the picture lights up where that word looked.")
        return "\n\n".join(lines)

    def _settings(self) -> tuple[gr.Slider, gr.Number, gr.Checkbox]:
        with gr.Accordion("Settings", open=False):
            remember = gr.Checkbox(
                self.model.talks and self.model.familiar is None,
                label="Remember the conversation",
                info="Earlier questions and answers are part of the next question."
                if self.model.talks
                else "This checkpoint has no chat template: each question stands alone.",
                interactive=self.model.talks,
                elem_id="fb-remember",
            )
            longest = gr.Slider(1, MOST_LONGEST, LONGEST, step=1, label="Longest answer, in tokens")
            seed = gr.Number(
                None, precision=0, label="Seed", info="Empty: the most likely answer. A number: a sampled one."
            )
        return longest, seed, remember


def _named(error: Failure, path: str | None) -> str:
    """An error with a file's name in the place of where it is kept."""
    return str(error) if path is None else str(error).replace(path, Path(path).name)
