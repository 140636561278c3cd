"""One target under Atheris: `python -m tests.fuzz.one NAME [libFuzzer's flags and folders]`, for __main__.py.

Code of ours, and what it parses with in Python, is instrumented as it is imported: the fuzzer keeps the
inputs that reach new lines, and goes on from them.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import atheris

INSTRUMENTED = ["runtime", "zipfile", "PIL", "python_multipart"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.targets import TARGETS, Target

# What a field is exchanged for: values that JSON allows and few readers expect.
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**400, 0.5, float("nan"), float("inf"), -0.0),
    *(
        "",
        "a" * 300,
        "a" * 5000,
        "..",
        "/",
        "a/b",
        "\0",
        "\x1b[2J",
        "\n",
        "\x85",
        "\u2028",
        "\ud800",
        "☃" * 150,
    ),
    *([], {}, [[]], ["a", "a"], {"a": None}, [[[[[[]]]]]], ["x"] * 300),
)


def exchange(data: bytes, longest: int, seed: int) -> bytes:
    """A mutator for JSON: another value in one place, or the bytes changed as in any other input."""
    chance = random.Random(seed)
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or chance.random() < 0.3:
        return bytes(atheris.Mutate(data, longest))
    holder: Any = fields
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.7:
            holder = holder[key]
            continue
        what = chance.random()
        if what < 0.1:
            del holder[key]
        elif what < 0.2 and isinstance(holder, dict):
            holder[chance.choice(["", "x", "version", *keys])] = holder[key]
        else:
            holder[key] = chance.choice(ODD)
        break
    return json.dumps(fields, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")[:longest]


def fuzz(target: Target, flags: list[str]) -> None:
    """Does not return: libFuzzer ends the process, with code 0 where it found nothing."""
    with atheris.instrument_imports(include=INSTRUMENTED):  # what is imported when it is needed
        for seed in target.seeds():
            target.parse(seed)
    options = {"custom_mutator": exchange} if target.text else {}
    atheris.Setup([sys.argv[0], *flags], target.parse, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(TARGETS[sys.argv[1]], sys.argv[2:])
