"""The recipe of the model that reads: its tokenizer, labels of patches, losses, and runs that stop and go on."""

import json

import numpy as np
import pytest
import torch
from trainings import assert_finite

from firebolt_vl.evaluate.answering import chat_prompt
from firebolt_vl.evaluate.familiar import read_familiar
from firebolt_vl.evaluate.screens import exam, layouts, report
from firebolt_vl.evaluate.screens.fonts import ALPHABET, Face
from firebolt_vl.evaluate.screens.questions import Question, sample_question
from firebolt_vl.evaluate.screens.report import evaluate_screens, print_report
from firebolt_vl.evaluate.screens.sampling import SPLITS, sample_scene
from firebolt_vl.evaluate.screens.scenes import Look, Scene, Text, letters_of
from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.train.config_files import load_config
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.loop import LoopOptions, run
from firebolt_vl.train.screens import models, recipe
from firebolt_vl.train.screens.batches import Drawing, pixels_of
from firebolt_vl.train.screens.job import Amounts, Course, ScreensJob, grounding_loss, seeing
from firebolt_vl.train.screens.models import PATCH, new_model, new_processor
from firebolt_vl.train.screens.reading import BLANK, END, FIELDS, START, UNKNOWN, Heads, labels_of
from firebolt_vl.train.screens.tokenizer import make_tokenizer
from firebolt_vl.train.session import new_accelerator
from firebolt_vl.train.start import train

TOKENIZER = make_tokenizer()
SIDE = 96
FACE = Face("DejaVuSansMono.ttf", 13)  # 8 pixels a letter


def scene_of(*texts: Text) -> Scene:
    return Scene("form", "by hand", SIDE, (255, 255, 255), (), texts, Look())


def text_of(text: str, y: int, x: int, field: str = "name", label: bool = False) -> Text:
    return Text(text, field, 0, label, y, x, FACE, (0, 0, 0))


def drawing(questions: int = 2) -> Drawing:
    return Drawing(TOKENIZER, SIDE, PATCH, questions, seed=3)


def job(steps: int = 4, connector: str = "cmm", grids: str = "patches") -> ScreensJob:
    model = new_model(TOKENIZER, SIDE, 0, connector, grids, {})
    given = Amounts(2, pool=4)
    return ScreensJob(model, new_processor(TOKENIZER, SIDE), drawing(), {"line": 1.0, "prices": 1.0}, steps, given)


def losses_of(job, out, report=lambda told: None, **options) -> list[float]:
    losses = []

    def note(told) -> None:
        losses.append(told.measured["loss"])
        report(told)

    run(job, new_accelerator([], out, cpu=True), LoopOptions(out, plot=False, **options), note)
    return losses


def test_answers_are_spelled_and_words_of_questions_are_tokens():
    rng = np.random.default_rng(0)
    for number in range(80):
        scene = sample_scene(rng, layouts.SCREENS[number % len(layouts.SCREENS)], SPLITS["seen"])
        for text in scene.texts:
            assert len(TOKENIZER(text.text).input_ids) == len(text.text)
            assert TOKENIZER.decode(TOKENIZER(text.text).input_ids) == text.text
    assert len(TOKENIZER("what is the destination").input_ids) == 4
    assert TOKENIZER.decode(TOKENIZER("Größe € 4").input_ids) == "Größe € 4"


def test_labels_of_patches_say_which_letter_stands_in_each_half():
    """Two letters of 8 pixels from x = 16 on: a patch each, on the row of patches with their middle."""
    labels, patches = labels_of([scene_of(text_of("ab", 39, 16), text_of("Z", 80, 8, "code", label=True))], PATCH)
    side = SIDE // PATCH
    for place, letter in enumerate("ab"):
        for at in patches[0][0, place]:
            assert at % side == 2 + place
            assert labels.left[0, at] == labels.right[0, at] == ALPHABET.index(letter)
            assert labels.before[0, at] == (ALPHABET.index("a") if place else START)
            assert labels.after[0, at] == (END if place else ALPHABET.index("b"))
            assert labels.place[0, at] == place
            assert labels.field[0, at] == FIELDS.index("name")
    (at, *_) = patches[0][1, 0]
    assert labels.field[0, at] == FIELDS.index("code") + len(FIELDS)
    blank = labels.left[0] == BLANK
    assert blank.sum() == side**2 - len({at for found in patches[0].values() for at in found})
    assert (labels.before[0][blank & (labels.right[0] == BLANK)] == UNKNOWN).all()


def test_every_letter_on_the_picture_has_a_patch():
    rng = np.random.default_rng(1)
    for kind in layouts.SCREENS:
        scene = sample_scene(rng, kind, SPLITS["seen"])
        _, patches = labels_of([scene], PATCH)
        for letter in letters_of(scene):
            found = patches[0][letter.text, letter.place]
            centres = [(8 * (at // 24) + 4, 8 * (at % 24) + 4) for at in found]
            if 0 <= letter.y < scene.side and 0 <= letter.x < scene.side:
                assert found
                assert min(max(abs(letter.y - y), abs(letter.x - x)) for y, x in centres) <= 12


def test_heads_read_what_is_plain():
    """Patches that are their labels, one hot, are read without a mistake once the readings are the identity."""
    labels, _ = labels_of([scene_of(text_of("ab", 39, 16))], PATCH)
    heads = Heads(BLANK + 1)
    with torch.no_grad():
        heads.readings.weight.zero_()
        heads.readings.bias.zero_()
        heads.readings.weight[: BLANK + 1] = 50 * torch.eye(BLANK + 1)
    patches = torch.nn.functional.one_hot(labels.left, BLANK + 1).float()
    loss, read = heads.loss(patches, labels)
    assert read == 1.0
    assert torch.isfinite(loss)


def test_what_is_drawn_depends_on_seed_and_number_alone():
    (pixels, labels), (again, _) = (drawing().reading(5, 2, 1, {"prices": 1.0}) for _ in range(2))
    assert torch.equal(pixels, again)
    assert pixels.shape == (3, 3, SIDE, SIDE)
    assert labels.left.shape == (3, (SIDE // PATCH) ** 2)
    assert not torch.equal(drawing().reading(6, 2, 1, {"prices": 1.0})[0], pixels)
    scenes, others = (drawing().scenes(number, 2, {"prices": 1.0}) for number in (5, 6))
    assert scenes == drawing().scenes(5, 2, {"prices": 1.0}) != others
    rows, same, later = (drawing().questions_about(scenes, step) for step in (7, 7, 8))
    assert torch.equal(rows.ids, same.ids)
    assert not (rows.ids.shape == later.ids.shape and torch.equal(rows.ids, later.ids))
    assert rows.scene.tolist() == [0, 0, 1, 1]


def test_the_token_before_a_letter_looks_at_its_patch():
    """On a screen whose one text is the answer: letters 8 pixels wide, each on a patch of its own."""
    scene = scene_of(text_of("Kfz", 39, 16, "line"))
    _, patches = labels_of([scene], PATCH)
    question = Question("line", "", "what is written?", "Kfz", held_out=False, target=0)
    rows = drawing().rows([(0, question)], patches)
    starts = int(rows.answer[0].int().argmax())
    for place in range(3):
        looked = rows.look[0, starts + place - 1].nonzero().flatten().tolist()
        assert looked == patches[0][0, place] != []
        assert {at % (SIDE // PATCH) for at in looked} == {2 + place}
    assert rows.look[0].any(-1).sum() == 3
    assert TOKENIZER.decode(rows.ids[0][rows.answer[0]]) == "Kfz" + TOKENIZER.eos_token


def test_a_letter_of_a_text_that_the_question_names_looks_at_its_patch():
    scene = scene_of(text_of("Kfz", 39, 16, "item"), text_of("4.20", 39, 56, "price"))
    _, patches = labels_of([scene], PATCH)
    question = Question("cell", "item price", "How much is the Kfz?", "4.20", held_out=False, target=1, named=(0, 16))
    rows = drawing().rows([(0, question)], patches)
    letters = rows.named[0].any(-1).nonzero().flatten()
    assert TOKENIZER.decode(rows.ids[0][letters]) == "Kfz"
    for place, at in enumerate(letters):
        assert rows.named[0, at].nonzero().flatten().tolist() == patches[0][0, place]


def test_a_question_says_where_it_names_a_text():
    rng = np.random.default_rng(2)
    for kind in ("board", "prices", "chat", "chart"):
        scene = sample_scene(rng, kind, SPLITS["seen"])
        for asked in ("cell", "reverse"):
            question = sample_question(rng, scene, asked)
            text, start = question.named
            assert question.text[start:].startswith(scene.texts[text].text)


def test_the_grounding_loss_by_hand():
    look = torch.zeros(1, 3, 4, dtype=torch.bool)
    look[0, 0, :2] = look[0, 2, 3] = True
    weights = torch.tensor([[[0.25, 0.25, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.25, 0.25]]])
    expected = -(np.log(0.5) + np.log(0.25)) / 2
    assert grounding_loss(weights, look).item() == pytest.approx(expected)
    assert grounding_loss(weights, look & False).item() == 0


def test_all_grids_are_seen_until_they_are_not():
    connector = job().model.model.connector
    for layer in (connector, connector.second):
        with seeing(connector, True):
            assert layer.config.top_k is None
        with seeing(connector, False):
            assert layer.config.top_k == 8
        assert layer.config.top_k == 8


def test_the_course_reads_first_then_lines_then_all_kinds(tmp_path):
    trained, asked, drawn = job(20), [], drawing()
    trained = ScreensJob(
        trained.model, trained.processor, drawn, trained.chances, 20, Amounts(2, pool=6), Course(0.25, 0.3, 0.5)
    )

    class Noted:
        questions_about = drawn.questions_about

        def reading(self, step, screens, pages, chances):
            asked.append((step, screens, pages, sorted(chances)))
            return drawn.reading(step, 1, 1, chances)

        def scenes(self, number, screens, chances):
            asked.append((number, screens, sorted(chances)))
            return drawn.scenes(number, screens, chances)

    trained.drawing = Noted()
    trained.prepare(new_accelerator([], tmp_path, cpu=True))
    trained.start(0)
    measured = {step: trained.step(step) for step in (0, 4, 5, 6, 19)}
    both = ["line", "prices"]
    # Numbers of lines come after those of the pool, which has 6 screens, 2 a step.
    assert asked == [(0, 1, 2, both), (4, 1, 2, both), (3 + 5, 2, ["line"]), (6 % 3, 2, both), (19 % 3, 2, both)]
    assert [step for step, found in measured.items() if "letters" in found] == [5, 6, 19]
    assert set(trained.kept) == {0, 1}


def test_the_tower_learns_to_read_and_is_then_left_as_it_is(tmp_path):
    trained = job(8)
    trained.prepare(new_accelerator([], tmp_path, cpu=True))
    trained.start(0)
    parts = {"tower": trained.model.model.vision_tower, "connector": trained.model.model.connector}
    parts["decoder"] = trained.model.model.language_model

    def changed(number):
        before = {name: {key: p.clone() for key, p in part.named_parameters()} for name, part in parts.items()}
        trained.step(number)
        return {
            name for name in parts if any((p != before[name][key]).any() for key, p in parts[name].named_parameters())
        }

    assert [changed(number) for number in range(4)] == [
        {"tower"},
        {"tower"},
        {"connector", "decoder"},
        {"connector", "decoder"},
    ]
    learned = {id(p) for optimizers in trained.schedules() for p in optimizers.parameters}
    assert learned == {id(p) for module in (trained.model, trained.heads) for p in module.parameters()}
    assert not {id(p) for p in trained.tower_optimizers.parameters} & {id(p) for p in trained.optimizers.parameters}


def test_what_the_tower_makes_of_a_screen_is_kept_to_half_precision(tmp_path):
    trained = job()
    scenes = trained.drawing.scenes(1, 2, trained.chances)
    seen = trained._see(scenes)
    pixels = pixels_of(scenes)
    assert torch.equal(seen.features, trained.model.model.vision_tower(pixels).last_hidden_state)
    for _ in range(2):
        kept = trained._kept(1, scenes)
        assert ((kept.features - seen.features).abs() <= 2.0**-11 * seen.features.abs() + 2.0**-24).all()
        assert torch.equal(kept.boxes, seen.boxes)
    assert trained.kept[1].features.dtype == torch.float16


def test_a_run_goes_on_as_if_it_never_broke(tmp_path):
    class Killed(BaseException):
        pass

    def kill(told) -> None:
        if told.step == 3:
            raise Killed

    torch.manual_seed(1)
    losses = losses_of(job(), tmp_path / "whole")
    assert all(np.isfinite(losses))
    torch.manual_seed(1)
    with pytest.raises(Killed):
        losses_of(job(), tmp_path / "broken", kill, save_every=2)
    torch.manual_seed(2)
    assert losses_of(job(), tmp_path / "broken", save_every=2, resume=True) == losses[2:]
    whole, broken = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


@pytest.mark.parametrize(("connector", "grids"), [("cmm", "views"), ("prepend", "patches")])
def test_the_same_course_teaches_what_it_is_compared_with(connector, grids, tmp_path):
    assert all(np.isfinite(losses_of(job(2, connector, grids), tmp_path)))
    assert_finite(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("minutes", "new"), [(2, True), (60, False)])
def test_a_time_becomes_steps_which_a_resumed_run_keeps(tmp_path, monkeypatch, minutes, new):
    """Of 1 s to read, 3 s for a new screen, 2 s for one that is known, 100 screens of one a step."""
    times = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(recipe, "_seconds", lambda run: next(times))
    config = load_config("screens", [f"minutes={minutes}", "side=96", "screens=1", "pool=100", "kinds=line"])
    steps = recipe.steps_within(config)
    reading = Course.reading * steps
    asked = steps - reading
    assert (asked <= 100) == new
    taken = reading + (3 * asked if new else 3 * 100 + 2 * (asked - 100))
    assert taken == pytest.approx(60 * minutes, rel=0.02)
    monkeypatch.setattr(recipe, "_seconds", lambda run: 2.0)
    (tmp_path / "steps.json").write_text(json.dumps({"minutes": float(minutes), "steps": 17}))
    said = []
    assert recipe._steps(config, tmp_path, True, said.append) == 17
    (tmp_path / "steps.json").write_text("{")
    assert recipe._steps(config, tmp_path, True, said.append) == 30 * minutes
    assert "timed again" in said[0]


def test_firebolt_train_screens_ends_with_a_model_that_the_exam_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(exam, "MOST_TOKENS", 2)
    keys = ["max_steps=2", "side=96", "screens=1", "kinds=line", "test_scenes=1", "threads=1"]
    out = train(load_config("screens", keys), tmp_path / "run", note=lambda text: None)
    results = json.loads((out / "results.json").read_text())
    assert results["splits"].keys() == SPLITS.keys()
    assert {"majority", "another image"} == results["splits"]["seen"]["baselines"].keys()
    model = FireboltForConditionalGeneration.from_pretrained(out)
    assert model.config.cmm_config["top_k"] == 8
    assert (out / "model.safetensors").stat().st_size < 10e6
    assert read_familiar(out).names
    with pytest.raises(ValueError, match="scenes is 2; expected at least 8, one of each kind"):
        evaluate_screens(out, scenes=2)
    print_report(results)


def test_grounding_is_measured_by_both_methods_where_the_answer_stands():
    trained = job()
    posed = exam.pose(1, 0, "seen", SIDE, ["line"])
    exam.encode(posed, trained.model.eval(), trained.processor)
    prompts = [chat_prompt(trained.processor, asked.question.text) for asked in posed.asked]
    right = [(0, posed.asked[0].question.answer)]
    found = report.grounding(posed, trained.model, trained.processor, prompts, right)
    assert found.keys() == {"weights", "occlusion"}
    for fitted in found.values():
        assert fitted["questions"] == 1
        assert fitted["pointing"] in (0.0, 1.0)
        # The box of a line is a few of the patches.
        assert 0 < fitted["chance"] < 0.4
    assert report.grounding(posed, trained.model, trained.processor, prompts, []) == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["side=100"], "side is 100; expected a multiple of 16"),
        (["kinds=poster"], "kinds is 'poster'; expected one of line"),
        (["kinds=[]"], "kinds is empty"),
        (["minutes=5", "max_steps=3"], "minutes is given with max_steps"),
        (["cmm.heds=3"], "did you mean heads"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config("screens", keys)


def test_a_folder_without_fonts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="extra_fonts: folder is "):
        recipe.new_job(load_config("screens", [f"fonts={tmp_path}", "side=96"]), 2)


def test_a_run_with_the_tower_of_another_answers_from_its_first_step(tmp_path):
    """As many steps answer as after the reading of a whole course, in the same parts of it."""
    losses_of(job(2), tmp_path / "whole")
    config = load_config("screens", ["side=96", "screens=1", f"tower={tmp_path / 'whole'}", "pool=2", "seed=5"])
    course = recipe.course_of(config)
    whole = Course()
    assert course.reading == 0
    assert course.lines * 85 == pytest.approx(100 * (whole.lines - whole.reading))
    assert (1 - course.all_grids) * 85 == pytest.approx(100 * (1 - whole.all_grids))
    taken = recipe.new_job(config, 4)
    trained = FireboltForConditionalGeneration.from_pretrained(tmp_path / "whole")
    towers = [one.model.vision_tower.state_dict() for one in (trained, taken.model)]
    assert all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])
    lines = []
    run(taken, new_accelerator([], tmp_path, cpu=True), LoopOptions(tmp_path / "out", plot=False), lines.append)
    assert all("letters" in told.measured for told in lines)


@pytest.mark.parametrize(
    ("found", "message"),
    [("nothing", "tower: .* is no folder"), ("empty", "tower: .* holds no model"), ("wide", "tower: .* has the tower")],
)
def test_a_tower_that_cannot_be_taken_is_refused(tmp_path, monkeypatch, found, message):
    folder = tmp_path / found
    if found == "empty":
        folder.mkdir()
    elif found == "wide":
        with monkeypatch.context() as patch:
            patch.setitem(models.VISION, "stem_size", 32)
            new_model(TOKENIZER, SIDE, 0, "cmm", "patches", {}).save_pretrained(folder)
    with pytest.raises(ConfigError, match=message):
        recipe.new_job(load_config("screens", [f"tower={folder}", "side=96"]), 2)
