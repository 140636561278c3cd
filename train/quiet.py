"""Keep native libraries' notes off the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """`with quiet_stderr(): import tensorflow`: what is written to stderr meanwhile is dropped.

    TensorFlow writes some lines before it reads TF_CPP_MIN_LOG_LEVEL, so that only the descriptor itself can
    stop them.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
