"""What becomes of memory that a process frees."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE = 1 << 30
_LARGE_ONCE = 32 << 20  # the most that glibc before 2.35 takes


def keep_freed_memory() -> bool:
    """Whether this process, from now on, keeps what it frees for what it allocates next.

    By default glibc gives large pieces back to the kernel, which fills them with zeros when they are asked
    for again: a sixth of the processor time of a training step, whose pieces are the same each time. Other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # The first alone would do harm: any setting ends glibc's own adapting of the other.
    kept = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _LARGE_ONCE)
    return bool(kept and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
