"""Inserted positions stand against their row's own text, all padding on the outside."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from firebolt_vl.model.packing import has_hole, leading_padding, pack, trailing_padding

masks = st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4).map(torch.tensor)


@given(masks)
def test_padding_is_counted_at_both_ends(mask):
    for row, lead, tail, hole in zip(mask.tolist(), leading_padding(mask), trailing_padding(mask), has_hole(mask)):
        text = "".join("x" if kept else "." for kept in row)
        assert int(lead) == len(text) - len(text.lstrip("."))
        assert int(tail) == (len(text) - len(text.rstrip(".")) if "x" in text else 0)
        assert bool(hole) == ("." in text.strip("."))


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_each_row_is_its_kept_candidates_in_order_in_one_piece(rows):
    width = max(sum(row[1:]) for row in rows) + 1
    text_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for mask, (_, lead, kept, _) in zip(text_mask, rows):
        mask[lead : lead + kept] = True
    inserted = torch.tensor([row[0] for row in rows])
    keep = torch.cat([inserted, text_mask], dim=1)
    candidates = torch.arange(1, keep.numel() + 1).view(*keep.shape, 1).float()
    packed = pack(candidates, keep, text_mask)
    assert not has_hole(packed.mask).any()
    for row in range(len(rows)):
        assert torch.equal(packed.embeddings[row, packed.mask[row]], candidates[row, keep[row]])
        assert not packed.embeddings[row, ~packed.mask[row]].any()
        read = packed.embeddings[row, packed.places[row, keep[row]]]
        assert torch.equal(read, candidates[row, keep[row]])
        assert trailing_padding(packed.mask)[row] == (trailing_padding(text_mask)[row] if keep[row].any() else 0)


def test_a_left_padded_row_keeps_its_insertion_beside_its_text():
    text_mask = torch.tensor([[False, True, True]])
    keep = torch.cat([torch.tensor([[True]]), text_mask], dim=1)
    packed = pack(torch.arange(4.0).view(1, 4, 1), keep, text_mask)
    assert packed.mask.tolist() == [[False, True, True, True]]  # [pad, z, text], never [z, pad, text]
    assert packed.embeddings[0, :, 0].tolist() == [0.0, 0.0, 2.0, 3.0]
