"""The operators of a model file, and the other programs that are known to compute them.

benchmarks/clients.py runs files in programs that this project did not write. A program that gives the right
answers has computed every operator of the file, in its version. operators.csv keeps this table of operators
and programs. The export names the operators of a new file that no such run has shown: the first converter or
layer that brings a newer version would otherwise lock programs out unnoticed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from export.parity.result import FileKey

TABLE = Path(__file__).with_suffix(".csv")

Operators = dict[str, int]  # name → version; a program that has a version has the earlier ones


def operators_report(files: Mapping[FileKey, bytes]) -> str:
    """A line for each file: how many programs computed all its operators, and which are new to the others."""
    lines = ["other programs, and how many of them have computed every operator of a file before:"]
    for (format, precision), data in files.items():
        new = new_operators(format, data)
        known = sum(not operators for operators in new.values())
        line = f"{format} {precision}: {'all' if known == len(new) else f'{known} of'} {len(new)} programs"
        for operators in dict.fromkeys(map(tuple, new.values())):
            if operators:
                programs = [program for program, others in new.items() if tuple(others) == operators]
                names = "all" if len(programs) == len(new) else ", ".join(programs)
                line += f"; new to {names}: {', '.join(operators)}"
        lines.append(line)
    return "\n".join(lines)


def new_operators(format: str, data: bytes) -> dict[str, list[str]]:
    """By program that computes files of the format: the operators, as "NAME VERSION", new to it."""
    used = file_operators(format, data)
    return {
        program: [f"{name} {version}" for name, version in used.items() if version > known.get(name, 0)]
        for program, known in read_table(format).items()
    }


def file_operators(format: str, data: bytes) -> Operators:
    """The operators of a .tflite or .onnx file with the highest version of each, by name."""
    found: Operators = {}
    for name, version in _tflite_operators(data) if format == "tflite" else _onnx_operators(data):
        found[name] = max(version, found.get(name, 0))
    return dict(sorted(found.items()))


def read_table(format: str) -> dict[str, Operators]:
    """The operators that each program has computed in files of a format."""
    table: dict[str, Operators] = {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.pop("format") == format:
                name = row.pop("operator")
                for program, version in row.items():
                    if version:
                        table.setdefault(program, {})[name] = int(version)
    return table


def write_table(table: Mapping[str, Mapping[str, Operators]]) -> None:
    """Writes the operators that each program has computed, by format: a row for each operator."""
    programs = sorted({program for programs in table.values() for program in programs}, key=str.lower)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["format", "operator", *programs])
        for format, computed in sorted(table.items()):
            for name in sorted({name for operators in computed.values() for name in operators}):
                versions = [computed.get(program, {}).get(name, "") for program in programs]
                writer.writerow([format, name, *versions])


def _tflite_operators(data: bytes) -> Iterable[tuple[str, int]]:
    from ai_edge_litert import schema_py_generated as schema  # here, because it takes 0.2 s to load

    from export.flatbuffer import unpack

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    return [(names[code.builtinCode], code.version) for code in unpack(data).operatorCodes]


def _onnx_operators(data: bytes) -> Iterable[tuple[str, int]]:
    import onnx  # here, because it takes 0.2 s to load

    model = onnx.load_model_from_string(data)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        version = opsets.get(node.domain, 1)
        with suppress(onnx.defs.SchemaError):  # of another domain, whose version is all that is known
            version = onnx.defs.get_schema(node.op_type, version, node.domain).since_version
        yield node.op_type, version
