"""Convolutions with a gate and a skip among the tensors that gradients are taken of."""


def by_position(op, gated=False, skip=False, **options):
    """op(u, k, gate, d_skip), without the last two where they are not there."""

    def run(u, k, *rest, **named):
        return op(u, k, rest[-1] if skip else None, gate=rest[0] if gated else None, **options, **named)

    return run


def shapes(B, D, L, K, gated=False, skip=False):
    """Of its arguments."""
    return [(B, D, L), (D, K), *[(B, D, L)] * gated, *[(D,)] * skip]


def with_products(op, gated=False, skip=False, **options):
    """op(u, k, product_weights, gate, d_skip), without the last two where they are not there."""

    def run(u, k, weights, *rest, **named):
        return by_position(op, gated, skip, **options)(u, k, *rest, product_weights=weights, **named)

    return run
