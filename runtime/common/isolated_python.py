"""The command of a Python process that imports what this process imports, and nothing from elsewhere."""

import sys
from pathlib import Path

_SET_PATH = "import sys; sys.path[:] = sys.argv.pop().split(chr(0x1f))\n"


def isolated_python(code: str, *arguments: str) -> list[str]:
    """Returns the command that runs `code` with `arguments` in sys.argv[1:].

    It imports from the folders of this process. `python -m` would import from the current folder first, where
    a folder `runtime` of something else, or a hostile file `numpy.py`, may be.
    """
    folders = "\x1f".join(str(Path(path).absolute()) for path in sys.path)
    return [sys.executable, "-I", "-c", _SET_PATH + code, *arguments, folders]
