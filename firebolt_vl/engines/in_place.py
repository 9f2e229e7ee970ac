"""A text that is read where its state lies: nothing is copied, and a token costs one call of the engine."""

from typing import Any

import numpy as np

from .graphs import Arrays

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
ROOM = "S"


class TextInPlace:
    """Rows of text about grids, by the graph "text" of an export.

    Caches, whose sizes have an "S", are changed where they lie; what else tokens change lies in two places, of which
    each call reads one and writes the other.
    """

    def __init__(self, session: Any, grids: Arrays, room: int):
        self.session, self.grids = session, grids
        self.rows = len(next(iter(grids.values())))
        sizes = {"B": self.rows, ROOM: room}
        state = [one for one in session.get_inputs() if one.name not in grids and one.name != "input_ids"]
        self.state: list[Arrays] = [{}, {}]
        for one in state:
            places = [np.zeros([sizes.get(size, size) for size in one.shape], DTYPES[one.type]) for _ in range(2)]
            if ROOM in one.shape:
                places[1] = places[0]
            for arrays, place in zip(self.state, places):
                arrays[one.name] = place
        width = next(one.shape[-1] for one in session.get_outputs() if one.name == "logits")
        self.logits = np.zeros((self.rows, width), np.float32)
        self.token = np.zeros((self.rows, 1), np.int64)
        self.steps = [self._bound(self.token, turn) for turn in range(2)]
        self.turn = 0

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read tokens [B,T]. Returns the logits [B,V] of the token after them, which the next call overwrites."""
        if ids.shape == self.token.shape:
            self.token[:] = ids
            binding = self.steps[self.turn]
        else:
            ids = np.ascontiguousarray(ids)
            binding = self._bound(ids, self.turn)
        self.session.run_with_iobinding(binding)
        self.turn = 1 - self.turn
        return self.logits

    def _bound(self, ids: np.ndarray, turn: int) -> Any:
        """A call that reads the state of one place and writes that of the other."""
        binding = self.session.io_binding()
        for name, array in {"input_ids": ids, **self.grids, **self.state[turn]}.items():
            binding.bind_input(name, *_placed(array))
        written = {"logits": self.logits, **{f"next.{name}": one for name, one in self.state[1 - turn].items()}}
        for name, array in written.items():
            binding.bind_output(name, *_placed(array))
        return binding


def _placed(array: np.ndarray) -> tuple:
    """Place of an array, as ONNX Runtime asks for it."""
    assert array.flags.c_contiguous
    return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data


__all__ = ["TextInPlace"]
