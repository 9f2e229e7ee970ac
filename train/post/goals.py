"""Goals of rows: what is right for each, in a training on rewards.

    {"image": "1.jpg", "conversations": [{"from": "human", "value": "How many?"}], "solution": "12", "reward": "number",
     "box": [10, 20, 90, 80]}

`solution` is a text, a number or a list of them; the conversation's last answer where it is absent. `reward` names the
rewards that the row has, one or a list of them; absent, all of the run. `box` [x0, y0, x1, y1], in pixels of the row's
only image, is where the answer is to be seen. Rewards that a row names and the run does not have are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...files.problems import BadRow
from ..data.rows import Row, solutions_of
from .reward_names import NAMES, NEED_BOX


@dataclass(frozen=True)
class Goal:
    """Solutions of a row, its rewards, and its box (y0, x0, y1, x1) in pixels."""

    solutions: tuple[str, ...]
    rewards: tuple[str, ...]
    box: tuple[float, float, float, float] | None = None


def goal_of(row: Row, rewards: Sequence[str]) -> Goal:
    """Read what is right for a row in a run with these rewards. Raises BadRow."""
    solutions = solutions_of(row.solution) or (row.turns[-1].text,)
    own, box = _rewards(row.reward, rewards), _box(row)
    for name in own:
        if name in NEED_BOX and box is None:
            raise BadRow("no box", f"expected `box` [x0, y0, x1, y1], in pixels of the image, for reward {name}")
    return Goal(solutions, own, box)


def _rewards(value: object, of_run: Sequence[str]) -> tuple[str, ...]:
    """Those rewards of a row that the run has; all of the run's where the row names none. Raises BadRow."""
    names = list(of_run) if value is None else value if isinstance(value, list) else [value]
    for name in names:
        if name not in NAMES:
            raise BadRow("unknown reward", f"`reward` has {name!r}; expected some of {', '.join(NAMES)}")
    found = tuple(name for name in of_run if name in names)
    if not found:
        raise BadRow("no reward", f"`reward` is {value!r}; expected at least one of the run's, {', '.join(of_run)}")
    return found


def _box(row: Row) -> tuple[float, float, float, float] | None:
    if row.box is None:
        return None
    if len(row.images) != 1:
        raise BadRow("box without an image", f"the row has {len(row.images)} images; expected one where a box is")
    sides = row.box if isinstance(row.box, list) else []
    numbers = [one for one in sides if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(sides) != 4 or len(numbers) != 4:
        raise BadRow("box is no box", f"it is {str(row.box)[:60]}; expected [x0, y0, x1, y1]")
    x0, y0, x1, y1 = map(float, numbers)
    if not (0 <= x0 < x1 < float("inf") and 0 <= y0 < y1 < float("inf")):
        raise BadRow("box is no box", f"it is {str(row.box)[:60]}; expected 0 <= x0 < x1 and 0 <= y0 < y1")
    return y0, x0, y1, x1
