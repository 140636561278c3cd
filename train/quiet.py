"""Keep TensorFlow's start-up notes off the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_import() -> Iterator[None]:
    """`with quiet_import(): import tensorflow`: what native libraries write to stderr meanwhile is dropped.

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
