"""`vgg-edge COMMAND`, the console script over all commands; `python -m runtime COMMAND` is the same."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from runtime.common.cli import EXIT_USER_ERROR, exit_process, run_cli, version_text
from runtime.common.packages import install_command
from runtime.common.terminal import print_error


@dataclass(frozen=True)
class Command:
    """A module with `main(argv)`, its line of help, and the packages that it needs to start."""

    module: str
    help: str
    needs: tuple[str, ...] = ()


# The modules are imported by name when they run: runtime depends neither on train nor on export.
COMMANDS = {
    "train": Command("train.__main__", "train a classifier on a folder of photos", ("keras",)),
    "compress": Command(
        "train.compress.__main__", "compress a trained model to a tenth of its multiplications", ("keras",)
    ),
    "refit": Command("train.refit", "fit the detector of unknown pictures of a run again", ("keras",)),
    "export": Command(
        "export.__main__", "write a trained model as TFLite and ONNX files", ("keras", "tensorflow", "onnx")
    ),
    "classify": Command("runtime.classify", "classify photos, a camera's frames, or a watched folder"),
    "adapt": Command("runtime.adapt", "let a model reject the scene in front of its camera"),
    "teach": Command("runtime.teach", "teach a model new classes and right answers on the device"),
    "serve": Command("runtime.serve", "serve a web page and an HTTP API"),
    "browser": Command("runtime.browser_page", "write one HTML file that classifies in the browser"),
    "bench": Command("runtime.bench", "find the fastest engine on this machine"),
}


def main(argv: Sequence[str]) -> int:
    """Runs the command `argv[0]` with the remaining arguments. Returns its exit code."""
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(version_text())
        return 0
    if name not in COMMANDS:
        print_error(f"{name!r} is not a command: vgg-edge {'|'.join(COMMANDS)}, or vgg-edge --help")
        return EXIT_USER_ERROR
    command = COMMANDS[name]
    missing = [package for package in command.needs if find_spec(package) is None]
    if missing:
        install = install_command("train,export")
        print_error(f"vgg-edge {name} needs {', '.join(missing)}, not installed yet: {install}")
        return EXIT_USER_ERROR
    code: int = import_module(command.module).main(arguments)
    return code


def run() -> NoReturn:
    """Runs the command line and ends the process: the entry point of the console script."""
    code = run_cli(lambda: main(sys.argv[1:]))  # Ctrl-C may arrive while a command is still imported
    if sys.argv[1:2] and sys.argv[1] in ("classify", "serve", "adapt", "teach"):
        # As `python -m runtime.COMMAND` does.
        exit_process(code)
    sys.exit(code)


def help_text() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vgg-edge COMMAND [FLAGS]",
            "",
            *lines,
            "",
            "vgg-edge COMMAND --help lists the flags of a command; vgg-edge --version prints the version.",
        ]
    )


if __name__ == "__main__":
    run()
