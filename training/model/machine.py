"""What the machine can do, and how the C library hands out its memory."""

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def fast_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices faster than fp32 ones: a GPU that does, or a CPU with AMX.

    AVX512-BF16 alone does not count: on a Xeon of family 6, model 207, without AMX, products of the sizes of
    `quickstart` ran at 80-90 GFLOP/s a core in bf16 and at 160-170 in fp32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported()


def keep_freed_memory() -> None:
    """Lets the process keep memory that tensors gave back, where the C library is glibc; elsewhere does nothing.

    By default glibc hands blocks of megabytes back to the system at once, and each update asks for them again, page
    fault by page fault: a tenth to a quarter of the time of a small model's update.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
