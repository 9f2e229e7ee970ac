"""The comparisons on boards: the task, its variants, the statistics and the tables."""

import csv
import io
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from numerics import assert_close

pytest.importorskip("sklearn")

from firebolt_vl import cli
from firebolt_vl.evaluate.digits import COLOURS, sources
from firebolt_vl.model import FireboltForConditionalGeneration
from firebolt_vl.train.ablation.boards import decoder, exam, report, runs, task, tower, variants
from firebolt_vl.train.ablation.boards.job import BoardsJob
from firebolt_vl.train.ablation.boards.questions import CELL_NAMES, FIRST_KINDS, KINDS, PAD, WORDS, ask
from firebolt_vl.train.ablation.boards.scenes import (
    CELL_SIDE,
    CELLS,
    CELLS_A_SIDE,
    EMPTY,
    SIDE,
    SINGLE,
    draw_boards,
    sample_boards,
)
from firebolt_vl.train.ablation.boards.variants import (
    BASE,
    TABLES,
    TEXT,
    VARIANTS,
    learning,
    make_config,
    make_model,
    matched_width,
    variants_of,
)
from firebolt_vl.train.ablation.statistics import estimate, paired

A_KIND = 500
SMALL = task.Settings(steps=2, first_steps=1, boards=4, exam_boards=6, tower_steps=1)


@pytest.fixture(scope="module")
def asked():
    generator = torch.Generator().manual_seed(5)
    boards = sample_boards(A_KIND * len(KINDS), "held-out", generator)
    return boards, ask(boards, torch.arange(len(KINDS)).repeat(A_KIND), generator)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boards")
    task.keep_tower(folder / runs.TOWER, SMALL.tower_steps)
    return folder


@pytest.fixture(scope="module")
def small(out):
    return task.load_task(out / runs.TOWER, SMALL)


@pytest.fixture(scope="module")
def rows(out):
    return {name: runs.do_run(out, name, 0, SMALL) for name in (BASE, "prepend")}


def answers_by_hand(words, cells):
    """All right answers to a question about cells, a list of (row, column, digit, colour): by rules written anew."""
    here = {(row, column): (digit, colour) for row, column, digit, colour in cells}
    match words:
        case ["how", "many", "of", colour, "?"]:
            return {str(sum(found == colour for *_, found in cells))}
        case ["row", "of", colour, digit, "?"] if colour in COLOURS:
            return {f"row {row + 1}" for row, _, *found in cells if found == [int(digit), colour]}
        case [what, "at", cell, "?"]:
            digit, colour = here[int(cell[1]) - 1, "abcd".index(cell[0])]
            return {str(digit) if what == "digit" else colour}
        case ["digit", "right", "of", digit, "?"]:
            beside = [here.get((row, column + 1)) for row, column, found, _ in cells if found == int(digit)]
            return {str(found[0]) for found in beside if found}
        case [what, "of", digit, "?"] if digit.isdigit():
            found = [(colour, f"row {row + 1}") for row, _, one, colour in cells if one == int(digit)]
            return {colour if what == "colour" else row for colour, row in found}
    raise AssertionError(words)


def test_every_question_has_one_answer_and_it_is_the_right_one(asked):
    boards, questions = asked
    for i in range(len(questions)):
        cells = [
            (cell // CELLS_A_SIDE, cell % CELLS_A_SIDE, int(boards.digits[i, cell]), COLOURS[boards.colours[i, cell]])
            for cell in range(CELLS)
            if boards.digits[i, cell] != EMPTY
        ]
        said = " ".join(WORDS[token] for token in questions.ids[i] if token != PAD)
        answer = answers_by_hand(said.split(), cells)
        assert answer == {WORDS[questions.answers[i]]}, (said, cells)


def test_questions_are_of_the_kinds_asked_for_and_no_answer_is_common(asked):
    _, questions = asked
    assert (questions.kinds == torch.arange(len(KINDS)).repeat(A_KIND)).double().mean() > 0.97
    for number, kind in enumerate(KINDS):
        answers = questions.answers[questions.kinds == number]
        assert answers.bincount().max() < (0.35 if kind == "count" else 0.3) * len(answers), kind


def test_the_question_alone_does_not_tell_the_answer(asked):
    """The most common answer of each text is right about few: of a text that is asked once it is no guess."""
    _, questions = asked
    generator = torch.Generator().manual_seed(6)
    boards = sample_boards(1000 * len(KINDS), "train", generator)
    learned = ask(boards, torch.arange(len(KINDS)).repeat(1000), generator)
    common = {}
    for ids, answer in zip(learned.ids.tolist(), learned.answers.tolist()):
        common.setdefault(tuple(ids), []).append(answer)
    for number, kind in enumerate(KINDS):
        chosen = questions.kinds == number
        guesses = [
            max(set(found), key=found.count) if (found := common.get(tuple(ids))) else -1
            for ids in questions.ids[chosen].tolist()
        ]
        right = (torch.tensor(guesses) == questions.answers[chosen]).double().mean()
        assert right < (0.45 if kind == "count" else 0.35), kind


def test_held_out_handwriting_is_in_no_board_of_the_training():
    generator = torch.Generator().manual_seed(1)
    learned, examined = (sample_boards(400, split, generator) for split in ("train", "held-out"))
    known = {int(one) for of_label in sources("train") for one in of_label}
    assert {int(one) for one in learned.written.unique() if one >= 0} <= known
    assert not {int(one) for one in examined.written.unique() if one >= 0} & known
    for boards in (learned, examined):
        counts = torch.stack([(boards.digits == digit).sum(1) for digit in range(10)], 1)
        assert ((counts == 1).sum(1) >= SINGLE).all()


def test_a_board_is_drawn_cell_by_cell():
    generator = torch.Generator().manual_seed(2)
    boards = sample_boards(20, "train", generator)
    cells = (
        draw_boards(boards, generator).unflatten(2, (CELLS_A_SIDE, CELL_SIDE)).unflatten(4, (CELLS_A_SIDE, CELL_SIDE))
    )
    contrast = cells.std((1, 3, 5)).flatten(1)
    assert contrast[boards.filled].min() > contrast[~boards.filled].max()
    red = cells.amax((3, 5))[:, 0].flatten(1) - cells.amax((3, 5))[:, 2].flatten(1)
    assert red[boards.colours == COLOURS.index("red")].min() > red[boards.colours == COLOURS.index("blue")].max()


def test_a_steps_data_is_that_of_its_seed_and_number_for_every_variant(small):
    first, views = small.batch(0, 3, "patches"), small.batch(0, 3, "views")
    assert torch.equal(first.questions.ids, views.questions.ids)
    assert torch.equal(first.grids, small.batch(0, 3, "patches").grids)
    assert not torch.equal(first.questions.ids, small.batch(0, 4, "patches").questions.ids)
    assert not torch.equal(first.questions.ids, small.batch(1, 3, "patches").questions.ids)
    assert torch.equal(small.batch(0, 3, "both").grids, torch.cat([views.grids, first.grids], 1))


def test_the_first_steps_ask_for_what_one_word_decides(small):
    wide = replace(small, settings=replace(SMALL, steps=30, first_steps=15, boards=32))
    asked = [{KINDS[kind] for kind in wide.batch(0, step, "views").questions.kinds.tolist()} for step in (14, 15)]
    assert asked == [set(FIRST_KINDS), set(KINDS)]


def test_grids_show_the_cells_under_their_boxes():
    for grids in ("views", "patches", "both"):
        boxes, seen = tower.boxes(grids), task.shown(grids)
        assert len(boxes) == len(seen)
        for box, cells in zip(boxes, seen):
            if box.tolist() == [0, 0, 1, 1]:
                assert not cells.any()
                continue
            y, x = ((torch.arange(CELLS) // CELLS_A_SIDE + 0.5) / 4, (torch.arange(CELLS) % CELLS_A_SIDE + 0.5) / 4)
            inside = (box[0] <= y) & (y < box[2]) & (box[1] <= x) & (x < box[3])
            assert torch.equal(cells, inside)
    assert CELL_NAMES[6] == "c2"


def test_a_patch_and_a_tile_are_where_their_boxes_say(small):
    images = torch.zeros(1, 3, SIDE, SIDE)
    changed = images.clone()
    changed[:, :, 8:16, 16:24] = 1.0  # cell c2
    for grids in ("patches", "views"):
        before, after = (tower.encode(small.tower, x, grids)[0] for x in (images, changed))
        of_cell = task.shown(grids)[:, 6]
        moved = (after - before).norm(dim=-1) * (tower.boxes(grids)[:, 2] < 1 + (grids == "patches"))
        assert int(moved.argmax()) == int(of_cell.int().argmax())


def test_views_are_as_large_as_the_patches_of_their_board(small):
    images, _ = small.exam_boards
    found = tower.encode(small.tower, images, "both")
    sizes = [x.square().mean((1, 2)).sqrt() for x in (found[:, :1], found[:, 1 : tower.VIEWS], found[:, tower.VIEWS :])]
    assert_close(sizes[0], sizes[2], relative=1e-5)
    assert_close(sizes[1], sizes[2], relative=1e-5)
    assert torch.equal(found[:, tower.VIEWS :], tower.encode(small.tower, images, "patches"))


def test_variants_have_as_many_parameters_that_learn_within_1_percent():
    counts = {}
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            model = FireboltForConditionalGeneration(make_config(variant, matched_width(variant)))
        counts[name] = learning(model)
    assert all(abs(count / counts[BASE] - 1) <= 0.01 for count in counts.values()), counts


def test_the_pool_is_what_the_tables_hold():
    assert set(VARIANTS) == {name for table in TABLES.values() for name in table}
    assert variants_of(["boards-query"]) == [BASE, "query-state", "two-layers"]


def test_masking_the_grid_that_answers_costs_most():
    """Of a model that says what a fixed grid holds: exam's measure against what is known."""
    shows = torch.zeros(2, CELLS, dtype=torch.bool)
    shows[0, 4] = shows[1, 5] = True
    questions = sample_questions(shows)
    asked = task.Asked(torch.zeros(2, CELLS, 8), questions)
    values = torch.zeros(2, CELLS)
    values[:, 4] = 1.0
    assert exam.hits(values, asked, "patches").tolist() == [True, False]
    values = torch.zeros(2, tower.VIEWS)
    values[:, 1 + 1] = 1.0  # the tile of rows 1 and 2, columns c and d
    assert exam.hits(values, asked, "views").tolist() == [False, False]
    values[:, 1 + 0] = 2.0  # columns a and b
    assert exam.hits(values, asked, "views").tolist() == [True, True]


def sample_questions(shows):
    generator = torch.Generator().manual_seed(0)
    boards = sample_boards(len(shows), "train", generator)
    return replace(ask(boards, torch.zeros(len(shows), dtype=torch.long), generator), shows=shows)


def test_a_run_is_a_row_with_everything_that_the_tables_tell(out, rows):
    row = rows[BASE]
    assert set(row["accuracy"]) == {*KINDS, "all"}
    assert row["accuracy"]["all"] == pytest.approx(sum(row["accuracy"][kind] for kind in KINDS) / len(KINDS))
    assert set(row["grounding"]) == {"weights", "occlusion"}
    assert set(rows["prepend"]["grounding"]) == {"occlusion"}  # it has no weights
    assert (row["decoder_positions"], rows["prepend"]["decoder_positions"]) == (4, 4 + CELLS)
    assert row["answer"]["over_base"] > 0
    assert math.isfinite(row["first_steps_loss"])
    assert json.loads(runs.POOL.row_file(out, BASE, 0).read_text())["settings"] == SMALL.to_dict()
    assert not list((out / runs.WORK).iterdir())


def test_what_is_there_is_not_run_again_and_seeds_come_in_order(out, rows):
    assert runs.POOL.missing(out, [BASE, "views"], 2, SMALL) == [("views", 0), (BASE, 1), ("views", 1)]


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"first_steps": 0}, {"lr": 1e-3}, {"matrix_lr": 0.02}, {"warmup": 1}, {"decay": 0.4}],
)
def test_a_row_of_another_recipe_counts_for_nothing(out, rows, small, change):
    changed = replace(SMALL, **change)
    assert runs.POOL.missing(out, [BASE], 1, changed) == [(BASE, 0)]
    optimizers = BoardsJob(make_model(VARIANTS[BASE], 0), "patches", replace(small, settings=changed), 0).optimizers
    assert [peak for part in optimizers.peaks for peak in part] == [changed.matrix_lr, changed.lr, changed.lr]
    assert (optimizers.steps, optimizers.warmup, optimizers.decay) == (changed.steps, changed.warmup, changed.decay)


def test_a_row_of_what_a_name_stood_for_before_counts_for_nothing(out, rows, monkeypatch):
    for changed in ({**TEXT, "hidden_size": 128}, {**TEXT, "norm_eps": 1e-9}):
        monkeypatch.setattr(variants, "TEXT", changed)
        assert runs.POOL.missing(out, [BASE, "prepend"], 1, SMALL) == [(BASE, 0), ("prepend", 0)]
    monkeypatch.undo()
    monkeypatch.setitem(VARIANTS, BASE, replace(VARIANTS[BASE], grids="views"))
    assert runs.POOL.missing(out, [BASE, "prepend"], 1, SMALL) == [(BASE, 0)]


def test_a_later_sitting_goes_on_with_the_tower_of_the_first(out, rows, tmp_path, monkeypatch):
    """Of what is kept, the folder of the rows, alone; no tower is trained, and no row is made again."""

    def alone(wanted, work, processes, report):
        for name, seed in wanted:
            report(name, seed, work(name, seed))

    def train_a_tower(steps):
        raise AssertionError("a tower is trained anew")

    shutil.copytree(out / runs.POOL.rows, tmp_path / runs.POOL.rows)
    monkeypatch.setattr(runs, "run_all", alone)
    monkeypatch.setattr(task, "pretrain", train_a_tower)
    before = runs.POOL.row_file(tmp_path, BASE, 0).read_bytes()
    done = []
    runs.fill_pool(tmp_path, [BASE], 2, SMALL, 1, lambda *one: done.append(one[:2]))
    assert done == [(BASE, 1)]
    assert runs.POOL.row_file(tmp_path, BASE, 0).read_bytes() == before
    page = report.write_report(tmp_path, ["boards-query"], 2, SMALL, "firebolt ablate boards")
    assert "| token | 2 |" in page


def test_a_run_that_was_stopped_ends_as_if_it_never_was(out, rows, monkeypatch):
    class Stopped(BaseException):
        pass

    whole = json.loads(runs.POOL.row_file(out, "prepend", 0).read_text())
    runs.POOL.row_file(out, "prepend", 0).unlink()
    step = BoardsJob.step

    def stop(self, number):
        if number == 1:
            raise Stopped
        return step(self, number)

    monkeypatch.setattr("firebolt_vl.train.ablation.training.SAVE_EVERY", 1)
    monkeypatch.setattr(BoardsJob, "step", stop)
    with pytest.raises(Stopped):
        runs.do_run(out, "prepend", 0, SMALL)
    monkeypatch.setattr(BoardsJob, "step", step)
    row = runs.do_run(out, "prepend", 0, SMALL)
    assert row["resumed"]
    assert json.loads(runs.POOL.row_file(out, "prepend", 0).read_text())["accuracy"] == whole["accuracy"]


def test_an_interval_is_that_of_students_t():
    """Of 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653 from a table: 4.302653 / sqrt(3) = 2.484138."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(2.484138, rel=1e-6)
    # Five numbers of deviation sqrt(2.5), t(0.975, 4) = 2.776445.
    assert estimate([1.0, 2.0, 3.0, 4.0, 5.0]).half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert estimate([7.0]) == (7.0, None, 1)
    assert not estimate([7.0]).clear
    assert estimate([2.0, 2.0]) == (2.0, 0.0, 2)


def test_differences_are_paired_by_seed():
    """Seeds that differ by 20 points hide nothing where both move together; a seed that one lacks counts for none."""
    base, other = {0: 40.0, 1: 60.0, 2: 50.0, 3: 90.0}, {2: 53.0, 0: 42.0, 1: 63.0}
    found = paired(other, base)
    assert (found.mean, found.count) == (pytest.approx(8 / 3), 3)
    assert found.half == pytest.approx(4.302653 * math.sqrt(1 / 3) / math.sqrt(3), rel=1e-6)
    assert found.clear
    assert paired({4: 1.0}, base) is None
    assert report.told(found) == "better"
    assert report.told(paired(base, other)) == "worse"
    assert report.told(paired({0: 40.0, 1: 61.0, 2: 49.0}, base)) == "no"
    assert report.told(paired({0: 50.0}, base)) == "one seed"


def test_texts_alone_have_one_answer():
    questions = decoder.recall(200, torch.Generator().manual_seed(3))
    for ids, answer in zip(questions.ids, questions.answers):
        words = [WORDS[token] for token in ids]
        assert words[6:8] + words[9:] == ["digit", "of", "?"]
        assert words[words.index(words[8]) + 1] == WORDS[answer]
        assert len({*words[:6]}) == 6


def test_a_trained_decoder_is_kept_and_what_it_knows_is_asked_before_and_after(out, monkeypatch):
    monkeypatch.setattr(decoder, "STEPS", 1)
    file = out / runs.DECODER
    decoder.keep_decoder(file)
    before = file.read_bytes()
    decoder.keep_decoder(file)
    assert file.read_bytes() == before
    row = runs.do_run(out, "trained-identity", 0, SMALL)
    model = make_model(VARIANTS["trained-identity"], 0)
    decoder.load_decoder(model, file)
    questions = decoder.recall(SMALL.exam_boards, torch.Generator().manual_seed(decoder.EXAM_SEED))
    with torch.no_grad():
        alone = model.eval()(input_ids=questions.ids, use_cache=False).logits[:, -1].argmax(-1)
    # Starting as the identity, an image takes nothing of it away.
    assert row["recall_before"] == pytest.approx((alone == questions.answers).double().mean().item(), abs=1e-4)
    assert 0 <= row["recall_after"] <= 1
    runs.POOL.row_file(out, "trained-identity", 0).unlink()
    file.unlink()


@pytest.fixture
def kept(out, rows):
    """Keeps rows of `all` shares by variant and seed in the pool, for one test."""
    text = {name: runs.POOL.row_file(out, name, 0).read_text() for name in rows}

    def keep(shares):
        for name, seeds in shares.items():
            runs.POOL.row_file(out, name, 0).unlink(missing_ok=True)
            for seed, all_right in seeds.items():
                row = json.loads(text[name])
                row["accuracy"]["all"] = all_right
                runs.POOL.row_file(out, name, seed).write_text(json.dumps({**row, "seed": seed}))

    yield keep
    for name in rows:
        for file in (out / runs.POOL.rows).glob(f"{name}-seed-*.json"):
            file.unlink()
        runs.POOL.row_file(out, name, 0).write_text(text[name])


def test_the_tables_tell_means_intervals_spreads_and_differences(out, kept):
    kept({BASE: {0: 0.5, 1: 0.6, 2: 0.7}, "prepend": {0: 0.4, 1: 0.5}})
    page = report.write_report(out, ["boards-connector", "boards-query"], 3, SMALL, "firebolt ablate boards")
    lines = page.splitlines()
    assert any(line.startswith("| CMM | 3 | 60.0 ± 24.8 |") and line.endswith("| 20.0 |") for line in lines)
    assert any(line.startswith("| prepend | 2 | 45.0 ± 63.5 |") and line.endswith("| 10.0 |") for line in lines)
    assert any(line.startswith("| prepend | 2 | -10.0 |") and line.endswith("| worse |") for line in lines)
    found = list(csv.DictReader(io.StringIO((out / "boards-connector.csv").read_text())))
    assert [(line["variant"], line["seeds"]) for line in found] == [(BASE, "3"), ("prepend", "2")]
    assert float(found[1]["all difference"]) == pytest.approx(-10)


def test_a_page_with_a_part_of_the_runs_names_the_missing_ones(out, kept):
    kept({BASE: {0: 0.5, 1: 0.6, 2: 0.7}, "prepend": {0: 0.4, 2: 0.5}})
    page = report.write_report(out, ["boards-connector"], 3, SMALL, "firebolt ablate boards")
    assert "still to be done, of 3 seeds: prepend seed 1; cross-attend seeds 0, 1, 2; CMM, concat seeds" in page
    assert "seed by seed, in points, over the seeds that both have" in page
    assert "| cross-attend" not in page


@pytest.mark.parametrize("has", ["no run", "other seeds"])
def test_a_page_does_not_compare_what_has_nothing_to_be_compared_with(out, kept, has):
    kept({BASE: {} if has == "no run" else {1: 0.6}, "prepend": {0: 0.4, 2: 0.5}})
    page = report.write_report(out, ["boards-connector"], 3, SMALL, "firebolt ablate boards")
    assert "told apart |" not in page
    assert ("CMM, which the others are compared with, has no run yet" in page) == (has == "no run")
    assert ("no other variant has a run of a seed that CMM has" in page) == (has == "other seeds")
    assert sum(line.startswith("| prepend | 2 | 45.0") for line in page.splitlines()) == 1
    found = {line["variant"]: line for line in csv.DictReader(io.StringIO((out / "boards-connector.csv").read_text()))}
    assert found["prepend"]["all difference"] == ""


def test_a_kept_tower_is_read_again_and_another_file_is_refused(out, tmp_path):
    file = out / runs.TOWER
    before = file.read_bytes()
    task.keep_tower(file, SMALL.tower_steps)
    assert file.read_bytes() == before
    (tmp_path / "tower.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"tower.safetensors is not a safetensors file, or is damaged"):
        task.load_task(tmp_path / "tower.safetensors", SMALL)


def test_the_command_knows_the_boards(out, rows, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(task.Settings, "quick", classmethod(lambda cls: SMALL))
    monkeypatch.setitem(TABLES, "boards-grids", {BASE: "patches"})
    assert cli.run(["ablate", "boards-grids", "--quick", "--out", str(out)]) == 0
    told = capfd.readouterr()
    assert "1 configurations x 1 seeds: 0 runs to do" in told.err
    assert told.out.startswith("# boards-grids")
    assert cli.run(["ablate", "board", "--out", str(tmp_path)]) == 2
    assert "boards-query" in capfd.readouterr().err


@pytest.mark.parametrize("row", [json.dumps({"settings": {"steps": 1600}}), json.dumps([1]), "{"])
def test_a_quick_run_replaces_none_of_whole_length(tmp_path, monkeypatch, capfd, row):
    monkeypatch.setattr(task.Settings, "quick", classmethod(lambda cls: SMALL))
    file = runs.POOL.row_file(tmp_path, "views", 3)
    file.parent.mkdir()
    file.write_text(row)
    assert cli.run(["ablate", "boards-query", "--quick", "--out", str(tmp_path)]) == 2
    assert "runs-boards has runs of whole length, such as views-seed-3.json" in " ".join(capfd.readouterr().err.split())
    assert [path.name for path in tmp_path.rglob("*.*")] == [file.name]
    assert file.read_text() == row
