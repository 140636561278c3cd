"""Fuzz one target with Atheris: `python -m tests.fuzz.worker NAME [flags and folders of libFuzzer]`.

The runtime and the Python libraries that it parses with are instrumented on import, so that the fuzzer keeps
the inputs that reach new lines and mutates them further.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import atheris

INSTRUMENTED = ["runtime", "zipfile", "PIL", "python_multipart", "uvicorn"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.targets import TARGETS, Target

# Valid JSON values that few readers expect.
ODD_VALUES: tuple[Any, ...] = (
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


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """A mutator for JSON: changes one field or value, or mutates the bytes like any other input."""
    rng = random.Random(seed)
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or rng.random() < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    change_one_value(fields, rng)
    return json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")[:max_size]


def change_one_value(holder: Any, rng: random.Random) -> None:
    """Remove, copy or replace one value, at any depth below `holder`."""
    while keys := list(holder) if isinstance(holder, dict) else list(range(len(holder))):
        key = rng.choice(keys)
        if isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
            continue
        change = rng.random()
        if change < 0.1:
            del holder[key]
        elif change < 0.2 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "version", *keys])] = holder[key]
        else:
            holder[key] = rng.choice(ODD_VALUES)
        return


def fuzz(target: Target, flags: list[str]) -> None:
    """Does not return: libFuzzer ends the process, with exit code 0 if the target passed."""
    with atheris.instrument_imports(include=INSTRUMENTED):  # parsing the seeds triggers the lazy imports
        for seed in target.seeds():
            target.parse(seed)
    options = {"custom_mutator": mutate_json} if target.is_json else {}
    atheris.Setup([sys.argv[0], *flags], target.parse, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(TARGETS[sys.argv[1]], sys.argv[2:])
