"""Rewards of text, on strings; of grounding, on the embedded model; and what rows say of what is right."""

import json
import re

import pytest
from conversations import row
from PIL import Image

import firebolt_vl
from firebolt_vl.files.problems import BadRow
from firebolt_vl.model import FireboltForConditionalGeneration, FireboltProcessor
from firebolt_vl.train.data.rows import check_row, parse_row
from firebolt_vl.train.errors import ConfigError
from firebolt_vl.train.post.config import GrpoConfig
from firebolt_vl.train.post.goals import Goal, goal_of
from firebolt_vl.train.post.reward_names import MEANINGS, NAMES, NEED_BOX, NEED_SOLUTION
from firebolt_vl.train.post.rewards import box_match, last_number, number_match, reward_of
from firebolt_vl.train.post.rewards_of_run import GroundingReward, TextReward, rewards_of_run

GOAL = Goal(("12", "twelve"), NAMES, (10.0, 20.0, 30.0, 60.0))


@pytest.mark.parametrize(
    ("name", "answer", "reward"),
    [
        ("exact", "12", 1),
        ("exact", " Twelve. ", 1),
        ("exact", "12 apples", 0),
        ("exact", "", 0),
        ("number", "There are 3 rows of 4: 12", 1),
        ("number", "12.00", 1),
        ("number", "12 or 13", 0),
        ("number", "twelve", 0),
        ("number", "", 0),
        ("words", "the twelve", 1),
        ("words", "twelve apples", 2 / 3),
        ("words", "none", 0),
        ("box", "[20, 10, 60, 30]", 1),
        ("box", "x 20, y 10 to 40, 30", 0.5),
        ("box", "[60, 30, 20, 10]", 0),
        ("box", "[0, 0, 5, 5]", 0),
        ("box", "20 10 60", 0),
        ("box", "", 0),
    ],
)
def test_rewards_of_text(name, answer, reward):
    assert reward_of(name, answer, GOAL) == pytest.approx(reward)


@pytest.mark.parametrize(("answer", "reward"), [("<a>12</a>", 1), ("<a>12</a> ", 0), ("12", 0), ("", 0)])
def test_reward_of_format(answer, reward):
    assert reward_of("format", answer, GOAL, re.compile(r"<a>\d+</a>")) == reward


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1,200", 1200), ("-3", -3), ("\u22123", -3), ("+.5", 0.5), ("3.", 3), ("a1b22c", 22), ("1,2", 2)],
        *[("no number", None), ("9" * 41, None), ("12" + "0" * 38, 12 * 10**38)],
    ],
)
def test_the_last_number_of_a_text(text, value):
    assert last_number(text) == value


def test_numbers_are_compared_exactly():
    assert number_match("0.1", ["0.10"]) == 1
    assert number_match("0.30000000000000004", ["0.3"]) == 0


def test_a_long_answer_is_no_reward_and_no_wait():
    for text in ("9" * 100_000, "[" + "1 " * 100_000, "-" * 100_000):
        assert number_match(text, ["9"]) == 0
        assert 0 <= box_match(text, (0.0, 0.0, 1.0, 1.0)) <= 1


def test_every_reward_has_a_meaning_and_a_place():
    assert set(MEANINGS) == {*NEED_SOLUTION, *NEED_BOX, "format"}
    for name in NAMES:
        if name not in ("grounding", "format"):
            assert 0 <= reward_of(name, "12", GOAL) <= 1
    with pytest.raises(ValueError, match=r"reward_of: name is 'grounding'"):
        reward_of("grounding", "12", GOAL)


def test_a_row_has_the_rewards_that_it_names():
    reward = TextReward("exact", None)
    said = [[{"role": "assistant", "content": " 12 "}]] * 2
    assert reward(completions=said, goal=[GOAL, Goal(("12",), ("words",))], other=1) == [1, None]


def goal(rewards=("exact",), **more) -> Goal:
    return goal_of(check_row(row("how many?", "12", image="0.png", **more)), rewards)


def test_the_last_answer_is_the_solution_where_there_is_no_other():
    assert goal() == Goal(("12",), ("exact",), None)
    assert goal(solution=["a", "b"]).solutions == ("a", "b")
    assert goal(solution=12).solutions == ("12",)
    assert goal(("exact", "words"), reward="words").rewards == ("words",)
    assert goal(("exact", "words"), reward=["grounding", "words"]).rewards == ("words",)
    assert goal(box=[1, 2, 3, 4.5]).box == (2, 1, 4.5, 3)


def test_a_row_with_a_solution_may_end_with_the_question():
    found = parse_row(json.dumps({"conversations": [{"from": "human", "value": "how many?"}], "solution": 12}).encode())
    assert [turn.text for turn in found.turns] == ["how many?", "12"]


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"reward": "exakt"}, "unknown reward"),
        ({"reward": ["exact", 3]}, "unknown reward"),
        ({"reward": []}, "no reward"),
        ({"reward": "words"}, "no reward"),
        ({"solution": [True]}, "solution is no text"),
        ({"solution": " "}, "empty solution"),
        ({"reward": "grounding"}, "no box"),
        ({"box": [1, 2, 3]}, "box is no box"),
        ({"box": [3, 2, 1, 4]}, "box is no box"),
        ({"box": [1, 2, 3, True]}, "box is no box"),
        ({"box": "1 2 3 4"}, "box is no box"),
        ({"box": [1, 2, 3, 4], "image": ["0.png", "1.png"]}, "box without an image"),
    ],
)
def test_what_cannot_be_right_is_a_bad_row(more, kind):
    with pytest.raises(BadRow) as raised:
        goal_of(check_row({**row("how many?", "12", image="0.png"), **more}), ("exact", "grounding"))
    assert raised.value.kind == kind


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rewards": {"exakt": 1.0}}, "rewards.exakt is unknown; the known keys are exact, .*did you mean exact"),
        ({"rewards": {"exact": -1.0}}, "rewards.exact is -1.0; expected at least 0"),
        ({"rewards": {"exact": "much"}}, "rewards.exact is 'much'; expected a number"),
        ({"rewards": {"exact": 0.0}}, "rewards has no weight above 0"),
        ({"rewards": {"format": 1.0}}, "format is not given, but rewards.format; expected both or neither"),
        ({"format": "a"}, "format is given without rewards.format"),
        ({"rewards": {"format": 1.0}, "format": "("}, "which is no regular expression"),
        ({"temperature": 0}, "temperature is 0.0; expected more than 0"),
        ({"generations": 1}, "generations is 1; expected at least 2"),
    ],
)
def test_rewards_that_cannot_be_are_named(keys, said):
    with pytest.raises(ConfigError, match=said):
        GrpoConfig(model="m", data=["d"], **keys)


def test_answers_of_a_step_are_cut_evenly():
    config = GrpoConfig(model="m", data=["d"], batch_size=4, generations=6, micro_batch_size=8)
    assert config.rows(1) == (8, 3)
    with pytest.raises(ConfigError, match=r"micro_batch_size is 8 on 2 processes; .*divide 24, the answers of a step"):
        config.rows(2)


@pytest.fixture(scope="module")
def embedded():
    folder = firebolt_vl.embedded_checkpoint()
    return FireboltForConditionalGeneration.from_pretrained(folder), FireboltProcessor.from_pretrained(folder)


def test_an_answer_rests_on_its_own_quarter(embedded):
    """Of the embedded model's right answer to a question that names a quarter, most lies there; little elsewhere."""
    model, processor = embedded
    image = Image.open("examples/digits-1.png").convert("RGB")
    prompt = [{"role": "user", "content": "what digit is at the top left?"}]
    text = processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    height, width = image.height / 2, image.width / 2
    boxes = [(y, x, y + height, x + width) for y in (0, height) for x in (0, width)]
    reward = GroundingReward(model, processor)
    goals = [Goal(("8",), ("grounding",), box) for box in boxes] + [Goal(("8",), ("exact",))]
    images = [[image.copy()] for _ in goals]
    shares = reward(completion_ids=[ids] * 5, goal=goals, prompts=[prompt] * 5, images=images)
    assert shares[4] is None
    assert shares[0] > 0.6
    assert shares[0] > 2 * max(shares[1:4])
    assert sum(shares[:4]) == pytest.approx(1, abs=1e-5)
    # Said twice it is looked at once; nothing that was said rests nowhere; the model trains on as it did.
    model.train()
    again = reward(completion_ids=[ids, ids, []], goal=goals[:1] * 3, prompts=[prompt] * 3, images=images[:1] * 3)
    assert again == [pytest.approx(shares[0], abs=1e-6)] * 2 + [0]
    assert model.training
    model.eval()


def test_the_rewards_of_a_run_have_their_names(embedded):
    config = GrpoConfig(model="m", data=["d"], rewards={"format": 1.0, "grounding": 0.0, "exact": 2.0}, format=r"\d")
    found = rewards_of_run(config, *embedded)
    assert [reward.__name__ for reward in found] == ["format", "grounding", "exact"]
    assert found[0](completions=[[{"content": "7"}]], goal=[Goal(("7",), ("format",))]) == [1]
