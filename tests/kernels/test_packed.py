"""Borders of packed texts."""

import pytest
import torch

from firebolt_vl.kernels.common.packed import check_packed

U = torch.zeros(1, 2, 7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("borders", [[0, 7], [0, 3, 7], [0, 0, 3, 3, 7, 7]])
def test_a_state_has_a_row_for_each_text(borders, dtype):
    assert check_packed("op", U, torch.tensor(borders, dtype=dtype)) == len(borders) - 1


def test_without_borders_it_has_one_for_each_row():
    assert check_packed("op", torch.zeros(5, 2, 7), None) == 5


@pytest.mark.parametrize(
    ("u", "cu_seqlens", "error", "message"),
    [
        (U, [0, 7], TypeError, "cu_seqlens is of type list"),
        (U, torch.tensor([0.0, 7.0]), TypeError, "cu_seqlens is float32; expected one of int32, int64"),
        (U, torch.tensor([[0, 7]]), ValueError, r"cu_seqlens has shape \[1, 2\]; expected \[borders\]"),
        (U, torch.tensor([7]), ValueError, "cu_seqlens has 1 numbers; expected at least 2"),
        (U, torch.tensor([0, 6]), ValueError, r"cu_seqlens is \[0, 6\]; expected borders that rise from 0 to L = 7"),
        (U, torch.tensor([1, 7]), ValueError, r"cu_seqlens is \[1, 7\]"),
        (U, torch.tensor([0, 5, 3, 7]), ValueError, r"cu_seqlens is \[0, 5, 3, 7\]"),
        (U, torch.tensor([0, 7], device="meta"), ValueError, "cu_seqlens is on meta; expected cpu, the device of u"),
        (torch.zeros(2, 2, 7), torch.tensor([0, 7]), ValueError, "u has 2 rows; expected one, since cu_seqlens packs"),
    ],
)
def test_bad_borders_are_named(u, cu_seqlens, error, message):
    with pytest.raises(error, match=message):
        check_packed("op", u, cu_seqlens)
