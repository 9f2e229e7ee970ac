"""All that rests on parts of transformers that it does not promise, in one place (`versions.TESTED`).

A module of transformers is replaced only in a version that was tested, and where it takes what ours was written for;
elsewhere it runs itself, and one line says so. The cache and the hooks of `generate` have no such way out: before a
model generates with a version for the first time, `self_check` compares cached with uncached generation.
"""

from .attention import SequencewiseAttention, attend_by_sequence
from .caches import GrowingLayer, extend, find_layer
from .extra_layer import ExtraLayer
from .feed_forward import CompactRMSNorm, JoinedMLP, compute_in_fewer_calls
from .generation import CachedGeneration
from .masks import layer_masks
from .offloading import parameters_present, to_device_of
from .packed_rows import PACKED_NAMES, decode_packed, keeps_apart
from .pooling_head import OneQueryPooling, pool_by_one_query
from .short_convolution import StepwiseShortConv, know_steps_and_borders
from .tying import untie
from .versions import CACHE, CACHE_NAMES, TESTED, given_cache, is_tested, restore_stock

__all__ = [
    "CACHE",
    "CACHE_NAMES",
    "PACKED_NAMES",
    "TESTED",
    "CachedGeneration",
    "CompactRMSNorm",
    "ExtraLayer",
    "GrowingLayer",
    "JoinedMLP",
    "OneQueryPooling",
    "SequencewiseAttention",
    "StepwiseShortConv",
    "attend_by_sequence",
    "compute_in_fewer_calls",
    "decode_packed",
    "extend",
    "find_layer",
    "given_cache",
    "is_tested",
    "keeps_apart",
    "know_steps_and_borders",
    "layer_masks",
    "parameters_present",
    "pool_by_one_query",
    "restore_stock",
    "to_device_of",
    "untie",
]
