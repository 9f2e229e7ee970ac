"""Matrix multiplication of a layer."""

from .onednn import PRODUCT, onednn_product
from .op import linear
from .prepacking import can_prepack, linear_prepacked, prepacked
from .pytorch import LEAST_WEIGHTS, ONEDNN, SLOW_HALVES, has_faster_product

__all__ = [
    "LEAST_WEIGHTS",
    "ONEDNN",
    "PRODUCT",
    "SLOW_HALVES",
    "can_prepack",
    "has_faster_product",
    "linear",
    "linear_prepacked",
    "onednn_product",
    "prepacked",
]
