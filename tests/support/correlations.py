"""Inputs of the correlation and FiLM ops as hypothesis draws them, and the weights written out token by token."""

import math

import torch
from hypothesis import strategies as st


@st.composite
def sizes(draw, max_grids: int = 9):
    """B, T, G, H, D_h, D."""
    return tuple(draw(st.integers(1, limit)) for limit in (3, 5, max_grids, 3, 5, 6))


@st.composite
def masks(draw, rows: int, columns: int):
    """[rows, columns] bool, any pattern, all-masked rows included; or None."""
    if draw(st.booleans()):
        return None
    kept = draw(st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    return torch.tensor(kept)


@st.composite
def layouts(draw, *shape: int, dtype=torch.float64, integers: bool = False):
    """A random tensor of the shape that is contiguous, transposed in memory, every second of a longer one, or expanded
    over its first axis. With `integers`, small whole numbers, so that scores tie."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def fresh(*size):
        if integers:
            return torch.randint(-1, 2, size, generator=generator).to(dtype)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(*size, generator=generator, dtype=wide).to(dtype)

    kind = draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded"]))
    if kind == "transposed":
        return fresh(*reversed(shape)).permute(*reversed(range(len(shape))))
    if kind == "strided":
        return fresh(*shape[:-1], 2 * shape[-1])[..., ::2]
    if kind == "expanded":
        return fresh(1, *shape[1:]).expand(*shape)
    return fresh(*shape)


def loop_weights(q, k, top_k, grid_mask, text_mask, renormalize):
    """a [B,H,T,G] one token and head at a time, in Python floats."""
    q, k = q.detach().double(), k.detach().double()
    B, T, H, D_h = q.shape
    G = k.shape[1]
    a = torch.zeros(B, H, T, G, dtype=torch.float64)
    for b in range(B):
        kept = [g for g in range(G) if grid_mask is None or grid_mask[b, g]]
        for t in range(T):
            if not kept or (text_mask is not None and not text_mask[b, t]):
                continue
            for h in range(H):
                scores = {g: float(q[b, t, h] @ k[b, g, h]) / math.sqrt(D_h) for g in kept}
                order = sorted(kept, key=lambda g: (-scores[g], g))
                chosen = order[:top_k] if top_k else order
                total = sum(math.exp(scores[g] - scores[order[0]]) for g in (chosen if renormalize else kept))
                for g in chosen:
                    a[b, h, t, g] = math.exp(scores[g] - scores[order[0]]) / total
    return a


def decided(q, k, top_k, grid_mask) -> bool:
    """Whether rounding cannot change which grids are the top k: no two scores at the border are all but equal.

    Equal scores are a matter of the tie rule alone where float32 gives them exactly, as of whole numbers.
    """
    scores = torch.einsum("bthd,bghd->bhtg", q.double(), k.double())
    narrow = torch.einsum("bthd,bghd->bhtg", q.float(), k.float())
    if not top_k or top_k >= scores.shape[-1] or torch.equal(scores, narrow.double()):
        return True
    size = torch.einsum("bthd,bghd->bhtg", q.double().abs(), k.double().abs())
    if grid_mask is not None:
        scores = scores.masked_fill(~grid_mask[:, None, None, :], -math.inf)
        size = size.masked_fill(~grid_mask[:, None, None, :], 0)
    ordered = scores.sort(-1, descending=True).values
    gap = ordered[..., top_k - 1] - ordered[..., top_k]
    return bool((gap.nan_to_num(math.inf) > 1e-5 * size.amax(-1)).logical_or(ordered[..., top_k] == -math.inf).all())
