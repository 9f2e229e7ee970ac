"""Memory given back when something else has been made of weights: that of a mapped file, and of temporaries."""

import ctypes
import mmap
import sys
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

PAGEMAP = Path("/proc/self/pagemap")
ENTRY = np.dtype(np.uint64)
# Bits of an entry of the page map (Linux, Documentation/admin-guide/mm/pagemap.rst).
PRESENT, SWAPPED, OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
DONTNEED = 4  # madvise's MADV_DONTNEED


def release_free_memory() -> None:
    """Give the system back what glibc keeps of freed memory, so that the holes between packed layers do not add up.

    Temporaries of up to 32 MB lie between what stays; elsewhere than with glibc nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@cache
def _madvise():
    function = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def release_file_pages(tensor: Tensor) -> int:
    """Give back the resident memory behind a tensor that is mapped from a file; returns how many bytes that were.

    safetensors files are mapped, so that a model of which a packed copy is made would be resident twice for as long
    as any of its tensors is in use. The tensor keeps its values: it is read from the file again if it is read again.
    Nothing is done, and 0 returned, where a page has been written to, where the memory is not a file's, and on
    systems other than Linux.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not PAGEMAP.exists():
        return 0
    first, last = -(-tensor.data_ptr() // mmap.PAGESIZE), (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE
    madvise = _madvise()
    if last <= first or madvise is None:
        return 0
    try:
        with PAGEMAP.open("rb") as file:
            file.seek(ENTRY.itemsize * first)
            pages = np.frombuffer(file.read(ENTRY.itemsize * (last - first)), ENTRY)
    except OSError:
        return 0
    untouched = pages & (PRESENT | SWAPPED) == 0
    if len(pages) < last - first or untouched.all() or not (untouched | (pages & OF_A_FILE != 0)).all():
        return 0
    length = (last - first) * mmap.PAGESIZE
    return length if madvise(first * mmap.PAGESIZE, length, DONTNEED) == 0 else 0
