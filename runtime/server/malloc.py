"""Settings of glibc's malloc for a service whose clients send large bodies to many threads."""

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # from glibc's malloc.h
LARGE_BLOCK = 4 * 2**20  # bytes
MAX_ARENAS = 1


def return_large_blocks_to_system() -> None:
    """Fixes the size of blocks that free() returns to the system, and the number of arenas.

    By default glibc raises the size, and each thread then keeps the memory of a large photo. Each further
    arena takes 64 MiB of address space, which `ulimit -v` limits. Call it before a library starts threads: an
    arena that exists stays. Does nothing where the C library is not glibc.
    """
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)
