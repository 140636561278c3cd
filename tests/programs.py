"""Programs that tests need and that pip does not install."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def require_program(program: str, package: str) -> str:
    """The path of a program. If it is missing, the test is skipped; in continuous integration it fails."""
    path = shutil.which(program)
    if path is None:
        skip_or_fail(f"{program} is not installed: apt-get install {package}")
    return path


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test on the machine of a developer. In continuous integration, no test is left out."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
