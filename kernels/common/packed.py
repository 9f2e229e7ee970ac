"""Packed sequences: several of them one after the other in one row, with nothing carried over a border."""

from torch import Tensor, int32, int64

from ..checks import check_dtypes, check_shapes


def check_packed(op: str, u: Tensor, cu_seqlens: Tensor | None, name: str = "u", time: int = -1) -> int:
    """Check the borders `cu_seqlens` [texts + 1] of the sequences in u [1, D, L], and return how many rows a state has.

    That is the number of sequences, or the batch size of u where cu_seqlens is None. Borders begin with 0, end with L
    and never decrease; equal ones are an empty sequence. Values are checked on a CPU only: on a GPU the host would
    have to wait for them, and kernels take them as they are. `name` is what u is called in errors, `time` its axis of
    length L.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape, device or value.
    """
    if cu_seqlens is None:
        return u.shape[0]
    check_shapes(op, **{name: (u, "...")}, cu_seqlens=(cu_seqlens, "borders"))
    check_dtypes(op, (int32, int64), cu_seqlens=cu_seqlens)
    if u.shape[0] != 1:
        raise ValueError(
            f"{op}: {name} has {u.shape[0]} rows; expected one, since cu_seqlens packs all sequences into it"
        )
    if cu_seqlens.numel() < 2:
        raise ValueError(
            f"{op}: cu_seqlens has {cu_seqlens.numel()} numbers; expected at least 2: where a sequence begins and ends"
        )
    if cu_seqlens.device.type == "cpu":
        borders, L = cu_seqlens.tolist(), u.shape[time]
        if borders[0] != 0 or borders[-1] != L or sorted(borders) != borders:
            raise ValueError(f"{op}: cu_seqlens is {borders}; expected borders that rise from 0 to L = {L}")
    return cu_seqlens.numel() - 1


def kept_states(rows: int, L: int, every: int, cu_seqlens: Tensor | None) -> int:
    """Count the states before each `every`-th step of all rows of L steps, or room for those of all sequences wherever
    the borders lie: those of sequence i begin at number border // every + i."""
    if cu_seqlens is None:
        return rows * ((L + every - 1) // every)
    return L // every + cu_seqlens.shape[0] - 1
