"""What the embedded model is trained on, its tokenizer, and the two losses."""

import json
import multiprocessing
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from trainings import assert_finite, poisoned
from transformers import AutoTokenizer, SiglipVisionConfig

pytest.importorskip("sklearn")

import firebolt_vl
from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.evaluate import familiar
from firebolt_vl.evaluate.digits import (
    COLOURS,
    LAYOUTS,
    POSITIONS,
    SPLITS,
    Scene,
    draw,
    handwriting,
    sample_scene,
    sources,
)
from firebolt_vl.evaluate.questions import KINDS, NOTHING, sample_question, wordings
from firebolt_vl.evaluate.tiny import markdown
from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor
from firebolt_vl.model.checkpoint_files import CheckpointError
from firebolt_vl.train.config_files import load_config
from firebolt_vl.train.errors import ConfigError, Stopped
from firebolt_vl.train.loop import LoopOptions, run
from firebolt_vl.train.session import new_accelerator
from firebolt_vl.train.start import train
from firebolt_vl.train.tiny import pool as pools
from firebolt_vl.train.tiny import seeds
from firebolt_vl.train.tiny.fusion import (
    EMBEDDING_STD,
    MARGIN,
    QUERY_SCALE,
    FusionJob,
    Views,
    answer_loss,
    grounding_loss,
    hide,
    sharpen_queries,
    tokenize,
)
from firebolt_vl.train.tiny.models import IMAGE_SIDE, VISION, new_model, new_processor
from firebolt_vl.train.tiny.pool import global_views, make_pool, tiles
from firebolt_vl.train.tiny.seed import Sizes
from firebolt_vl.train.tiny.seeds import overall, train_seeds
from firebolt_vl.train.tiny.tokenizer import make_tokenizer
from firebolt_vl.train.tiny.tower import TowerJob, encode

ANY_SCENE = st.builds(
    lambda seed, layout: sample_scene(np.random.default_rng(seed), layout, "held-out"),
    st.integers(0, 2**32),
    st.sampled_from(LAYOUTS),
)


TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZER


@pytest.fixture(scope="module")
def pool():
    return make_pool(24, seed=3, side=IMAGE_SIDE, processes=1)


def trained(job, out, **options) -> list[float]:
    """The losses of a job's steps."""
    losses = []
    loop = LoopOptions(out, **options)
    run(job, new_accelerator([], out, cpu=True), loop, lambda told: losses.append(told.measured["loss"]))
    return losses


@pytest.fixture(scope="module")
def tower(pool, tmp_path_factory):
    job = TowerJob(SiglipVisionConfig(**VISION), pool, steps=2, seed=0)
    trained(job, tmp_path_factory.mktemp("tower"))
    return job.tower


@pytest.fixture(scope="module")
def views(pool, tower):
    return Views.of_quarters(encode(tower, pool.pixels))


def test_the_splits_are_disjoint_and_together_all_digits():
    assert sorted(np.concatenate([np.concatenate(sources(split)) for split in SPLITS])) == list(range(1797))
    _, labels = handwriting()
    for split, size in SPLITS.items():
        assert sum(map(len, sources(split))) == size
        for label in range(10):
            assert (labels[sources(split)[label]] == label).all()
            assert len(sources(split)[label]) > 15


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'test'; expected one of held-out, validation, train"):
        sources("test")


def test_training_draws_from_training_digits_alone(pool):
    used = set(pool.sources.flatten().tolist()) - {-1}
    assert len(used) > 30
    assert used <= set(np.concatenate(sources("train")))


@given(ANY_SCENE)
def test_a_scene_holds_at_most_one_digit_a_quarter_and_keeps_its_layouts_promise(scene):
    quarters = [digit.tile for digit in scene.digits]
    assert len(set(quarters)) == len(quarters) >= 1
    crossing = [
        any(centre - digit.size / 2 < 0.5 < centre + digit.size / 2 for centre in (digit.y, digit.x))
        for digit in scene.digits
    ]
    if scene.layout != "across":
        assert not any(crossing)
    assert len(scene.digits) == 4 or scene.layout != "inside"
    assert len(scene.digits) < 4 or scene.layout != "empty"
    assert bool(scene.strokes) == (scene.layout in ("clutter", "across"))


def test_most_scenes_across_have_a_digit_across_a_border():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, "across", "train") for _ in range(200)]
    crossed = [any(min(abs(d.y - 0.5), abs(d.x - 0.5)) < d.size / 2 for d in scene.digits) for scene in scenes]
    assert np.mean(crossed) > 0.9


@given(ANY_SCENE)
def test_a_digit_is_drawn_where_the_scene_says(scene):
    for digit in scene.digits:
        alone = Scene(scene.layout, (digit,), (), scene.background)
        ground = np.asarray(draw(replace(alone, digits=()), 96), dtype=int)
        changed = np.abs(np.asarray(draw(alone, 96), dtype=int) - ground).sum(-1)
        y, x = np.average(np.indices(changed.shape).reshape(2, -1), axis=1, weights=changed.ravel()) / 96
        assert abs(y - digit.y) < 0.08
        assert abs(x - digit.x) < 0.08


def test_a_scene_of_a_seed_is_the_same_again():
    first, again = (sample_scene(np.random.default_rng(5), "across", "train") for _ in range(2))
    assert first == again
    assert draw(first).tobytes() == draw(again).tobytes()


def right_answer(kind: str, text: str, scene: Scene) -> str:
    """The answer, worked out from the words of the question alone."""
    words = re.findall(r"[a-z]+|\d", text.lower())
    colour = next((word for word in words if word in COLOURS), None)
    digit = next((int(word) for word in words if word.isdigit()), None)
    asked = [d for d in scene.digits if (digit is None or d.label == digit) and (colour is None or d.colour == colour)]
    if kind in ("digit at", "colour at"):
        tile = next(i for i, position in enumerate(POSITIONS) if position in text.lower())
        found = scene.at(tile)
        return NOTHING if found is None else str(found.label) if kind == "digit at" else found.colour
    if kind == "is there":
        return "yes" if asked else "no"
    if kind == "how many":
        return str(len(asked))
    (only,) = asked
    return only.colour if kind == "colour of" else POSITIONS[only.tile]


@given(ANY_SCENE, st.sampled_from(KINDS), st.booleans(), st.integers(0, 2**32))
def test_the_answer_is_what_the_words_of_the_question_ask_for(scene, kind, held_out, seed):
    question = sample_question(np.random.default_rng(seed), scene, kind, held_out)
    if question is None:
        assert kind in ("colour of", "where is")
        return
    assert question.answer == right_answer(kind, question.text, scene)
    if question.phrase is not None:
        phrase = question.text[slice(*question.phrase)].lower()
        named = [scene.at(tile) for tile in question.tiles]
        if kind in ("digit at", "colour at"):
            assert [POSITIONS[tile] for tile in question.tiles] == [phrase]
        else:
            assert named == [d for tile in range(4) if (d := scene.at(tile)) and phrase in (d.colour, str(d.label))]
            assert len(named) == 1 or kind in ("is there", "how many")


def test_yes_and_no_are_equally_often_right():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, LAYOUTS[i % 4], "train") for i in range(300)]
    answers = [sample_question(rng, scene, "is there").answer for scene in scenes for _ in range(10)]
    assert abs(np.mean([answer == "yes" for answer in answers]) - 0.5) < 0.03


def test_held_out_wordings_are_new_but_their_words_are_not():
    for kind in KINDS:
        trained, held_out = ({text for group in wordings(kind, held) for text in group} for held in (False, True))
        assert len(trained) >= 5
        assert held_out
        assert not trained & held_out
    known = {word for kind in KINDS for group in wordings(kind, False) for text in group for word in _words(text)}
    asked = {word for kind in KINDS for group in wordings(kind, True) for text in group for word in _words(text)}
    assert asked <= known


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\{[a-z]+\}", text)


@given(st.text())
def test_any_text_has_tokens_and_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def test_no_token_joins_two_position_words(tokenizer):
    for token in tokenizer.get_vocab():
        assert len(re.findall("bottom|top|left|right", token.lower())) <= 1


def test_words_of_questions_and_answers_are_single_tokens(tokenizer):
    for answer in ("yes", "no", NOTHING, *COLOURS, *"0123456789"):
        assert len(tokenizer(answer).input_ids) == 1
    assert [len(tokenizer(position).input_ids) for position in POSITIONS] == [2, 2, 2, 2]


def test_the_tokenizer_is_the_same_each_time_and_after_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Where is the 7?"}]
    prompt = loaded.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert loaded(prompt).input_ids == tokenizer(prompt).input_ids == make_tokenizer()(prompt).input_ids
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 3)


def test_a_pool_does_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(pools, "CHUNK", 4)
    one, two = (make_pool(10, seed=1, side=32, processes=processes) for processes in (1, 2))
    assert torch.equal(one.pixels, two.pixels)
    assert one.questions == two.questions
    assert one.captions == two.captions
    assert max(scene for scene, _ in one.questions) == 9


def test_training_sees_the_pixels_that_the_processor_makes(tokenizer):
    rng = np.random.default_rng(0)
    images = [draw(sample_scene(rng, layout, "train"), pools.DRAWN_SIDE) for layout in LAYOUTS]
    made = new_processor(tokenizer).image_processor(images, return_tensors="pt")
    resized = [np.asarray(image.resize((IMAGE_SIDE, IMAGE_SIDE), 2)) for image in images]
    views = global_views(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))
    assert_close(views, made["pixel_values"], relative=1e-6)
    assert_close(tiles(views).unflatten(0, (-1, 4)), made["pixel_tiles"], relative=1e-6)


def test_a_caption_says_all_that_is_in_the_scene(pool):
    assert [scene for scene, _ in pool.captions] == list(range(24))
    for scene, caption in pool.captions:
        said = re.findall(r"(\w+ \w+) (\w+) (\d)", caption.answer)
        assert " ".join(" ".join(one) for one in said) == caption.answer
        there = [tile for tile in range(4) if pool.labels[scene, tile] != pools.NO_DIGIT]
        assert sorted((POSITIONS.index(place), COLOURS.index(colour), int(label)) for place, colour, label in said) == [
            (tile, pool.colours[scene, tile], pool.labels[scene, tile]) for tile in there
        ]


def test_rows_mark_the_answer_and_the_phrase(tokenizer, pool):
    rows = tokenize(tokenizer, pool.questions)
    for row, (scene, question) in enumerate(pool.questions):
        ids = rows.ids[row]
        assert tokenizer.decode(ids[rows.answer[row]]) == question.answer + tokenizer.eos_token
        assert question.text in tokenizer.decode(ids[rows.text[row]])
        assert not ids[~rows.text[row]].any()
        assert rows.scene[row] == scene
        phrase = tokenizer.decode(ids[rows.phrase[row]]).strip()
        assert phrase == (question.text[slice(*question.phrase)] if question.phrase else "")


@pytest.mark.parametrize("asking", [{}, {"query": "state"}, {"layers": 2}], ids=str)
def test_the_losses_are_those_of_the_model(tokenizer, pool, tower, asking):
    model = new_model(tokenizer, tower, seed=0).eval()
    if asking:
        model.model.connector = CrossModalModulator(replace(model.model.connector.config, **asking)).eval()
    rows = tokenize(tokenizer, pool.questions)[torch.arange(12)]
    views = Views.of_quarters(encode(tower, pool.pixels))
    grids = views.features[rows.scene]
    mask = torch.ones(grids.shape[:2], dtype=torch.bool)
    mask[:, 0] = False
    labels = rows.ids.masked_fill(~rows.answer, -100)
    whole = model(input_ids=rows.ids, attention_mask=rows.text, grids=grids, grid_mask=mask, labels=labels)
    assert_close(answer_loss(model, rows, grids, mask), whole.loss, relative=1e-5)

    text = model.get_input_embeddings()(rows.ids)
    _, weights = model.model.connector(text, grids, rows.text, mask, return_weights=True)
    expected = []
    for row in range(len(rows.ids)):
        if rows.tiles[row].any():
            phrase = weights[row, rows.phrase[row], 1:].mean(0)
            named, others = phrase[rows.tiles[row]], phrase[~rows.tiles[row]]
            expected.append((MARGIN - named.min() + max(others.tolist(), default=0.0)).clamp(min=0))
    assert_close(
        grounding_loss(model, rows, views.shown_of(rows), grids, mask), torch.stack(expected).mean(), relative=1e-5
    )


def test_answers_are_right_under_the_grids_that_are_hidden(tokenizer, pool):
    rows = tokenize(tokenizer, pool.questions + pool.captions)
    nothing = tokenizer.convert_tokens_to_ids(NOTHING)
    torch.manual_seed(0)
    named = torch.nn.functional.pad(rows.tiles, (1, 0))
    away, hidden = torch.zeros(len(rows.ids)), torch.zeros(len(rows.ids), 5)
    for _ in range(50):
        shown, mask = hide(rows, named, nothing)
        assert mask.any(1).all()
        unseen = (named & ~mask).any(1)
        assert rows.by_place[unseen].all()
        assert mask[~rows.phrase.any(1)].all()
        assert torch.equal(shown.ids[~unseen], rows.ids[~unseen])
        for row in unseen.nonzero()[:, 0]:
            assert tokenizer.decode(shown.ids[row][rows.answer[row]]) == NOTHING + tokenizer.eos_token
        away += unseen
        hidden += ~mask
    assert away[rows.by_place].mean() / 50 == pytest.approx(0.15, abs=0.02)
    assert 0.05 < hidden[~named & rows.phrase.any(1, keepdim=True)].mean() / 50 < 0.15


@pytest.mark.parametrize("start", ["norm", "identity"])
def test_queries_of_both_layers_are_sharpened_to_one_size(start):
    config = CMMConfig(16, 8, layers=2, start=start)
    torch.manual_seed(0)
    layer = CrossModalModulator(config)
    before = [one.q_proj.weight.detach().clone() for one in (layer, layer.second)]
    sharpen_queries(layer)
    assert torch.equal(layer.q_proj.weight, QUERY_SCALE * before[0])
    # What the first layer has normed is larger than an embedding; what it leaves is one.
    size = 1 / EMBEDDING_STD if start == "norm" else 1
    assert_close(size * layer.second.q_proj.weight, QUERY_SCALE * before[1], relative=1e-6)


def fusion(tokenizer, pool, tower, views, steps: int = 5) -> FusionJob:
    model = new_model(tokenizer, tower, seed=0)
    rows = tokenize(tokenizer, pool.questions), tokenize(tokenizer, pool.captions)
    return FusionJob(model, new_processor(tokenizer), views, *rows, steps, 1.0)


def test_fusion_leaves_the_tower_alone_and_repeats_itself(tokenizer, pool, tower, views, tmp_path):
    jobs = [fusion(tokenizer, pool, tower, views, 2) for _ in range(2)]
    losses = []
    for number, job in enumerate(jobs):
        torch.manual_seed(1)
        losses.append(trained(job, tmp_path / str(number)))
    assert losses[0] == losses[1]
    for name, parameter in jobs[0].model.model.vision_tower.named_parameters():
        assert torch.equal(parameter, tower.get_parameter(name))


def stopped(job, out, at: int) -> None:
    class Killed(BaseException):
        pass

    def report(told):
        if told.step == at:
            raise Killed

    with pytest.raises(Killed):
        run(job, new_accelerator([], out, cpu=True), LoopOptions(out, save_every=2), report)


def test_both_stages_go_on_as_if_they_never_broke(tokenizer, pool, tower, views, tmp_path):
    """Random batches, noise, what is hidden, two optimisers: all of it is in a checkpoint."""

    def tower_job():
        return TowerJob(SiglipVisionConfig(**VISION), pool, steps=5, seed=0)

    for name, make in (("tower", tower_job), ("fusion", lambda: fusion(tokenizer, pool, tower, views))):
        whole, broken = tmp_path / name, tmp_path / f"broken-{name}"
        torch.manual_seed(1)
        losses = trained(make(), whole)
        torch.manual_seed(1)
        stopped(make(), broken, at=3)
        torch.manual_seed(2)
        assert trained(make(), broken, save_every=2, resume=True) == losses[2:]
        assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()


def test_the_weight_of_a_quarter_is_that_of_all_grids_that_show_it(tokenizer, pool, tower, views):
    """Two halves of a tile that are looked at alike weigh as the tile does."""
    model = new_model(tokenizer, tower, seed=0).eval()
    rows = tokenize(tokenizer, pool.questions)[torch.arange(12)]
    grids, shown = views.features[rows.scene], views.shown_of(rows)
    model.model.connector.positions = None
    model.model.connector.config = replace(model.model.connector.config, top_k=0)
    twice, named_twice = grids.repeat(1, 2, 1), shown.repeat(1, 1, 2)
    masks = [torch.ones(one.shape[:2], dtype=torch.bool) for one in (grids, twice)]
    masks[1][:, 5] = False  # the global view once
    masks[0][:, 0] = masks[1][:, 0] = False
    assert_close(
        grounding_loss(model, rows, named_twice, twice, masks[1]),
        grounding_loss(model, rows, shown, grids, masks[0]),
        relative=1e-5,
    )


def test_a_short_run_has_a_little_of_everything():
    assert Sizes.of(load_config("tiny")) == Sizes()
    short = Sizes.of(load_config("tiny", ["max_steps=28"]))
    assert short == Sizes(scenes=500, tower_steps=25, fusion_steps=28, test_scenes=20)
    assert Sizes.of(load_config("tiny", ["max_steps=28", "tower_steps=3", "test_scenes=0"])).tower_steps == 3


def test_firebolt_train_tiny_ends_with_a_model_that_answers_and_its_results(tmp_path):
    config = load_config("tiny", ["max_steps=2", "scenes=8", "tower_steps=1", "test_scenes=4", "seed=3"])
    out = train(config, tmp_path / "run", note=lambda text: None)
    results = json.loads((out / "results.json").read_text())
    assert (results["training_seed"], results["scenes"]) == (3, 4)
    model = FireboltForConditionalGeneration.from_pretrained(out)
    assert model.generation_config.eos_token_id == FireboltProcessor.from_pretrained(out).tokenizer.eos_token_id
    again = train(load_config("tiny", ["max_steps=2", "seed=3", f"tower={out}/tower", "test_scenes=0"]), tmp_path / "b")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


SEEDS = ["max_steps=2", "scenes=8", "tower_steps=1", "test_scenes=4", "seed=1", "seeds=2"]


def test_the_median_of_several_seeds_is_the_model(tmp_path):
    config = load_config("tiny", SEEDS)
    out = train(config, tmp_path / "tiny", note=lambda text: None)
    results = json.loads((out / "results.json").read_text())
    assert [run["training_seed"] for run in results["seeds"]] == [1, 2]
    median = min(results["seeds"], key=overall)
    assert results["shipped_seed"] == median["training_seed"]
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (out / f"seed-{median['training_seed']}" / "model.safetensors").read_bytes()
    assert f"Seed {median['training_seed']}, the median of 2." in markdown(results)
    # What `make tiny` copies; what the model was trained on is written beside it by its last command.
    shipped = {file.name for file in firebolt_vl.embedded_checkpoint().iterdir()}
    copied = {file.name for end in ("jinja", "json", "safetensors") for file in out.glob(f"*.{end}")}
    assert copied - {"train.json"} == shipped - {familiar.FILE}
    with pytest.raises(ConfigError, match="holds a run; --resume goes on with it"):
        train(config, out, note=lambda text: None)
    (out / "model.safetensors").unlink()
    train(config, out, resume=True, note=lambda text: None)
    assert (out / "model.safetensors").read_bytes() == weights


def test_several_seeds_that_are_stopped_say_what_is_kept(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(seeds, "_next", stop)
    with pytest.raises(Stopped, match="stopped at once; seed 1: no checkpoint was written before, seed 2: no check"):
        train(load_config("tiny", SEEDS), tmp_path / "tiny", note=lambda text: None)
    assert multiprocessing.active_children() == []


def test_a_seed_that_cannot_go_on_ends_all(tmp_path):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        train_seeds(load_config("tiny", SEEDS), tmp_path / "out", tmp_path, resume=False)
    assert multiprocessing.active_children() == []


def test_steps_that_are_not_finite_are_skipped_by_train_tiny_too(tmp_path):
    said = []
    config = load_config("tiny", ["max_steps=3", "scenes=8", "tower_steps=3", "test_scenes=0"])
    with poisoned(TowerJob, 1), poisoned(FusionJob, 2):
        out = train(config, tmp_path / "run", note=said.append)
    assert said[-1].startswith("1 of 3 steps were skipped")
    for file in ("model.safetensors", "tower/stage.safetensors", "tower/model.safetensors"):
        assert_finite(out / file)
