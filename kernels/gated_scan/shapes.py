"""Division of sequences among programs for the Triton kernels."""

# Of a tile: one for each thread of a warp.
CHANNELS = 32
# The state before each so many steps is kept for the backward pass; so many steps have a tile.
KEPT = 16
# Programs, each a warp, with which a pass over all steps takes an H100 no longer than two passes over pieces of them
# (`bench/predict`): the backward pass has more to wait for.
ENOUGH_FORWARD, ENOUGH_BACKWARD = 256, 1024
# Programs that are aimed at where there are fewer; most pieces that a sequence is then divided into; fewest steps of a
# piece.
PROGRAMS, MOST_PIECES, FEWEST_STEPS = 1024, 64, 64


def block_of_channels(D: int) -> int:
    """Channels of a tile, a power of two."""
    return min(CHANNELS, 1 << (D - 1).bit_length())


def pieces_of(programs: int, T: int, enough: int) -> int:
    """Count the pieces that a sequence of T steps is divided into, where otherwise there are so many programs."""
    if programs >= enough:
        return 1
    return max(1, min(MOST_PIECES, PROGRAMS // programs, T // FEWEST_STEPS))
