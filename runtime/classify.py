"""Names what is in photos: `python -m runtime.classify PHOTO…`, or Classifier in a program.

The next photos are decoded on a thread of their own while the engine works on this one.
"""

import argparse
import glob
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import EngineError, PictureError, UserError
from runtime.common.terminal import (
    Parser,
    answer_columns,
    pad,
    print_error,
    print_info,
    printable,
    run_cli,
    suppress_native_stderr,
    width,
)
from runtime.inference.engine_cache import EngineSelection, load_selection
from runtime.inference.engines import (
    ENGINES,
    FORMATS_OF,
    MODULES,
    choose_engine,
    default_threads,
    is_installed,
    load_session,
    require_engine,
)
from runtime.model_file.model import FORMATS, KEY_VARIABLE, choose_model, open_model
from runtime.preprocess.picture import SUFFIXES, read_picture

Source = str | Path | bytes | BinaryIO | NDArray[np.uint8]

# Pictures decoded before the engine asks for them: one being handed over, one being made. More would only
# hold memory.
AHEAD = 2


@dataclass(frozen=True)
class ClassScore:
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture; `python -m runtime.classify --json` prints these fields."""

    source: str
    label: str  # the most probable class, also when `known` is False
    probability: float
    known: bool | None  # whether it looks like any of the classes; None when the model does not tell
    top: tuple[ClassScore, ...]  # the most probable classes, the first being `label`
    ms: Mapping[str, float]  # "decode" and "infer", milliseconds


@dataclass(frozen=True)
class ModelOutput:
    """What the model gave for one picture."""

    probabilities: NDArray[np.float32]  # [C], in the order of the labels
    known: float | None  # the output `known`, 0-1; None when the model has none
    ms: float  # the engine's time


class Classifier:
    """A model in an engine, ready for pictures.

    `model` is a folder that an export wrote, or one of its files; without it the newest under ./models,
    else the released one. `engine` is "auto", "litert", "onnx" or "tflite": auto is the fastest file and
    engine that `python -m runtime.bench --save` found, else goes by a rule, and `why` says which. `threads`
    defaults to the fastest number, or to the cores there are. With `key`, a public key's PEM file (or the one
    that VGG_EDGE_KEY names), only a model that it has signed is loaded. Raises ModelError or EngineError.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        engine: str = "auto",
        threads: int | None = None,
        top: int = 3,
        key: str | Path | None = None,
    ) -> None:
        if engine == "auto":
            # What is installed comes first, but the rest too: load() then says what to install for the file.
            formats = [FORMATS_OF[name] for name in ENGINES if is_installed(name)] + list(FORMATS)
        elif engine in ENGINES:
            require_engine(engine)
            formats = [FORMATS_OF[engine]]
        else:
            raise EngineError(f"no engine is called {engine!r}: auto, {', '.join(ENGINES)}")
        self.top = top
        self.formats = list(dict.fromkeys(formats))  # those that it would open, best first
        choice = choose_model(model, self.formats)
        measured = load_selection(choice.among) if engine == "auto" else ""
        fastest = measured if isinstance(measured, EngineSelection) else None
        self.prefer = fastest.sha256 if fastest else ""  # of the files in these formats, the one to open
        # Reading and hashing a model leaves the interpreter to others: the imports take their turn meanwhile.
        ahead = (fastest.engine if fastest else engine, choice.path.suffix.removeprefix("."))
        Thread(target=_import_ahead, args=ahead, daemon=True).start()
        self.model = open_model(model, self.formats, prefer=self.prefer, key=key)
        self.why = ""  # what auto went by
        if fastest and self.model.sha256 == fastest.sha256:  # another one may lie there by now
            engine, threads = fastest.engine, threads or fastest.threads
            self.why = f"auto: {fastest}"
        self.threads = threads or default_threads()
        self.run = load_session(self.model, engine, self.threads)
        self._turn = Lock()  # interpreters are not thread-safe
        if engine == "auto":
            self.why = (
                f"auto: {self.run.engine.split()[0]}, by rule: the first installed of {', '.join(ENGINES)}, "
                f"int8 first ({measured}); `python -m runtime.bench --save` measures"
            )

    def __str__(self) -> str:
        return f"{self.model.path} on {self.run.engine}, {self.threads} threads"

    def __call__(self, source: Source) -> Prediction:
        """Classifies a path, a picture's encoded bytes, a binary file, or pixels, uint8 [H, W, 3], RGB.

        Raises PictureError.
        """
        picture = _read(source, self.model.contract.input_size)
        if isinstance(picture.pixels, PictureError):
            raise picture.pixels
        return self._predict(picture, picture.pixels)

    def each(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Prediction | PictureError]]:
        """Classifies many, in their order, decoding ahead; a picture that cannot be read gives its error."""
        with _reading_ahead(sources, self.model.contract.input_size) as pictures:
            for picture in pictures:
                if isinstance(picture.pixels, PictureError):
                    yield picture.source, picture.pixels
                else:
                    yield picture.source, self._predict(picture, picture.pixels)

    def infer(self, pixels: NDArray[np.uint8]) -> ModelOutput:
        """What the model says of pixels, uint8 [H, W, 3], RGB, of its input size. Raises EngineError.

        Threads take turns; the time is the engine's alone.
        """
        with self._turn:
            started = time.perf_counter()
            outputs = self.run(pixels[np.newaxis])
            ms = 1000 * (time.perf_counter() - started)
        probabilities = outputs["probabilities"][0]
        if not np.isfinite(probabilities).all():
            raise EngineError(f"{self.model.path}: {self.run.engine} gave probabilities that are no numbers")
        return ModelOutput(probabilities, outputs["known"].item() if "known" in outputs else None, ms)

    def tell(self, source: str, answer: ModelOutput, decode_ms: float) -> Prediction:
        """The answer in words: labels for the probabilities, and whether it is known."""
        contract = self.model.contract
        best = np.argsort(-answer.probabilities, kind="stable")[: max(1, self.top)]
        guesses = tuple(
            ClassScore(contract.labels[i], round(float(answer.probabilities[i]), 6)) for i in best
        )
        known = None if answer.known is None else bool(answer.known >= contract.thresholds["known"])
        return Prediction(
            source=source,
            label=guesses[0].label,
            probability=guesses[0].probability,
            known=known,
            top=guesses,
            ms={"decode": round(decode_ms, 1), "infer": round(answer.ms, 1)},
        )

    def _predict(self, picture: "_Picture", pixels: NDArray[np.uint8]) -> Prediction:
        return self.tell(_name(picture.source), self.infer(pixels), picture.decode_ms)


def _import_ahead(engine: str, format: str) -> None:
    """What the first photo is going to need. Whoever needs it for real says why it does not load."""
    with suppress(Exception):
        import_module("PIL.JpegImagePlugin")
        engine = choose_engine(format) if engine == "auto" else engine
        import_module(MODULES[engine] if engine == "onnx" else f"{MODULES[engine]}.interpreter")


@dataclass(frozen=True)
class _Picture:
    source: Source
    pixels: NDArray[np.uint8] | PictureError
    decode_ms: float


def _read(source: Source, size: tuple[int, int]) -> _Picture:
    started = time.perf_counter()
    try:
        pixels: NDArray[np.uint8] | PictureError = read_picture(source, size)
    except PictureError as error:
        pixels = error
    return _Picture(source, pixels, 1000 * (time.perf_counter() - started))


@contextmanager
def _reading_ahead(sources: Iterable[Source], size: tuple[int, int]) -> Iterator[Iterator[_Picture]]:
    """Decodes on one other thread: engines use all cores, and one decoder keeps up with them."""
    pictures: Queue[_Picture | BaseException | None] = Queue(AHEAD)
    stopped = Event()

    def read_all() -> None:
        try:
            for source in sources:
                if stopped.is_set():
                    return
                pictures.put(_read(source, size))
            pictures.put(None)
        except BaseException as error:  # from the caller's own iterable: raised where the caller is
            pictures.put(error)

    def take() -> Iterator[_Picture]:
        while (picture := pictures.get()) is not None:
            if isinstance(picture, BaseException):
                raise picture
            yield picture

    Thread(target=read_all, name="read-ahead", daemon=True).start()
    try:
        yield take()
    finally:
        stopped.set()
        with suppress(Empty):  # makes room for a reader that waits in put()
            while True:
                pictures.get_nowait()


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    name = getattr(source, "name", None)  # an open file's; encoded bytes have none
    return name if isinstance(name, str) and source is not sys.stdin.buffer else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all done, 1 some photos failed and the others are done, 2 usage, no model, no engine."""
    warnings.filterwarnings("ignore", module="PIL")  # oddities of a picture's tags: not the user's to mend
    return run_cli(lambda: _run(_arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runtime.classify",
        description="Names what is in photos.",
        epilog="Exit codes: 0 all done, 1 some photos failed or the camera was lost, 2 usage, no model, "
        "no engine, no camera.",
    )
    parser.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="file, folder, pattern such as '*.jpg', or - for one picture on standard input",
    )
    add_options(parser)
    parser.add_argument(
        "--verify", action="store_true", help="check the model's signature and every file under it, no photos"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="times, and what the engine itself has to say"
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_camera(parser)
    arguments = parser.parse_args(argv)
    if sum(map(bool, (arguments.photos, arguments.camera, arguments.watch, arguments.verify))) != 1:
        parser.error("give photos, or --camera, or --watch DIR, or --verify")
    for needs, flags in {
        "camera": ("retry", "every", "on_change", "save_unknown", "capture"),
        "watch": ("out",),
    }.items():
        for flag in flags:
            if getattr(arguments, flag) and not getattr(arguments, needs):
                parser.error(f"--{flag.replace('_', '-')} goes with --{needs}")
    if any("://" in photo for photo in arguments.photos):  # not repeated here: it may hold a password
        parser.error("an address goes with --camera")
    return arguments


def _add_camera(parser: argparse.ArgumentParser) -> None:
    """What runtime.show and runtime.watch do."""

    def seconds(text: str) -> float:
        units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        unit = next((unit for unit in units if text.endswith(unit)), "")
        if not 0 <= (number := float(text.removesuffix(unit))) < 1e6:
            raise ValueError
        return number * units.get(unit, 1.0)

    def frames_or_seconds(text: str) -> int | float:
        return int(text) if text.isdecimal() else seconds(text)

    def megabytes(text: str) -> float:
        if not 0 <= (number := float(text)) < 1e9:  # nor NaN, which no sum would ever reach
            raise ValueError
        return number

    seconds.__name__ = "time such as 500ms, 1s or 2m"
    frames_or_seconds.__name__ = "number of frames, or time such as 500ms"
    camera = parser.add_argument_group("camera")
    camera.add_argument(
        "--camera",
        nargs="?",
        const="0",
        metavar="SOURCE",
        help="name what it sees: the number or device of a USB camera (default: 0), picamera, "
        "an address (rtsp://, http://), or a clip",
    )
    camera.add_argument("--retry", action="store_true", help="wait for a camera that is away or goes away")
    camera.add_argument(
        "--every", type=seconds, metavar="TIME", default=0.0, help="at most one answer in so long"
    )
    camera.add_argument("--on-change", action="store_true", help="tell only when the answer is another")
    camera.add_argument(
        "--smooth",
        type=frames_or_seconds,
        metavar="N|TIME",
        default=0.5,
        help="average over so many frames, or so long; 0 for none (default: 500ms)",
    )
    camera.add_argument(
        "--save-unknown", metavar="DIR", help="keep the frames that are answered with unknown"
    )
    camera.add_argument(
        "--capture",
        nargs=2,
        metavar=("LABEL", "DIR"),
        help="keep frames as photos of this class, under DIR/LABEL; one a second, or --every",
    )
    camera.add_argument(
        "--max-mb",
        type=megabytes,
        metavar="MB",
        default=1000,
        help="keep no more than that (default: %(default)s)",
    )
    run_watch = parser.add_argument_group("watch")
    run_watch.add_argument("--watch", metavar="DIR", help="classify the photos there, and those that arrive")
    run_watch.add_argument(
        "--out", metavar="FILE", help="append the answers to this .csv or .db (SQLite) file"
    )


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version  # slow to import, seldom asked for

        try:
            parser.exit(message=f"vgg-edge {version('vgg-edge')}\n")
        except PackageNotFoundError:
            parser.exit(message="vgg-edge, from its source\n")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return _verify(arguments)
    if arguments.camera:
        from runtime.camera.camera_cli import run_camera

        return run_camera(arguments)
    if arguments.watch:
        from runtime.watch.folder_watcher import run_watch

        return run_watch(arguments)
    return _classify(arguments)


def positive(text: str) -> int:
    """The type of a flag that counts. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of whatever classifies: which model, and Classifier's `options`."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="folder with a model.json, or a .tflite or .onnx file (default: the newest under ./models that "
        "was trained on photos, else the released one)",
    )
    parser.add_argument(
        "--key",
        metavar="PUBLIC.pem",
        help=f"run only what this key has signed (default: the one that {KEY_VARIABLE} names, if it is set)",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", *ENGINES],
        default="auto",
        help="default: auto, the fastest that `python -m runtime.bench --save` found, else by a rule",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="default: the fastest found, else the cores there are"
    )
    parser.add_argument("--top", type=positive, metavar="N", default=3, help="classes to tell (default: 3)")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Classifier's options, as they were given to the command."""
    return {name: getattr(arguments, name) for name in ("engine", "threads", "top", "key")}


def _classify(arguments: argparse.Namespace) -> int:
    with nullcontext() if arguments.verbose else suppress_native_stderr():
        classifier = Classifier(arguments.model, **options(arguments))
    if arguments.verbose and classifier.why:
        print_info(classifier.why)
    names, problems = _expand(arguments.photos)
    if not arguments.json:
        print(printable(str(classifier)), flush=True)
    elif arguments.verbose:
        print_info(str(classifier))
    line = json_line if arguments.json else _table(names, classifier.model.contract.labels, arguments.verbose)

    def fail(name: str, reason: str) -> None:
        problems[name] = reason
        print_error(f"{name}: {reason}")
        if arguments.json:
            print(json.dumps({"source": name, "error": reason}), flush=True)

    for name, reason in list(problems.items()):
        fail(name, reason)
    sources = (sys.stdin.buffer if name == "-" else name for name in names)
    for name, (_, answer) in zip(names, classifier.each(sources), strict=True):
        if isinstance(answer, PictureError):
            fail(name, str(answer).removeprefix(f"{name}: "))
        else:
            print(line(answer), flush=True)
    return 1 if problems else 0


def _verify(arguments: argparse.Namespace) -> int:
    """Tells what is signed and by whom. What does not hold is raised."""
    model = open_model(arguments.model, key=arguments.key)
    if model.signature is None:
        raise UserError(f"--verify takes the public key of who signed: --key PUBLIC.pem, or {KEY_VARIABLE}")
    from runtime.model_file.signature import verify_beside

    found = verify_beside(model.signature)
    print(printable(f"{model.signature.path} holds, by the key {model.signature.key}"))
    for name, state in found.items():
        print(f"  {pad(printable(name), max(map(width, found)))}  {state}")
    return 0


def _expand(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The pictures that files, folders and patterns stand for, and what gave none, with the reason."""
    names: list[str] = []
    problems: dict[str, str] = {}
    for argument in arguments:
        matches = [argument]
        # Some shells, Windows' among them, leave patterns to the program. A file that is called so comes
        # first.
        if any(sign in argument for sign in "*?[") and not os.path.lexists(argument):
            matches = sorted(glob.glob(argument, recursive=True), key=_natural)  # noqa: PTH207 (may be absolute)
            if not matches:
                problems[argument] = "matches no file"
        for match in matches:
            if os.path.isdir(match):
                names += _pictures_below(match, problems)
            else:
                names.append(match)
    return names, problems


def _pictures_below(top: str, problems: dict[str, str]) -> list[str]:
    names: list[str] = []
    unreadable: dict[str, str] = {}
    for folder, folders, files in os.walk(
        top, onerror=lambda error: unreadable.update({str(error.filename): str(error.strerror).lower()})
    ):
        # Hidden ones are thumbnails, trash, and the shadows that macOS leaves on memory cards.
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(folder, name) for name in files if not name.startswith(".")]
        names += [str(path) for path in paths if path.suffix.lower() in SUFFIXES]
    if not names and not unreadable:
        unreadable[top] = "no pictures in this folder"
    problems |= unreadable
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts photo10 after photo9."""
    parts = re.split("([0-9]+)", name.casefold())
    return [(int(part), "") if at % 2 else (0, part) for at, part in enumerate(parts)]


def json_line(prediction: Prediction, **more: object) -> str:
    """What --json prints: the prediction's fields, and `more` of them."""
    # asdict() copies each field deeply, and the service writes such a line for every photo.
    return json.dumps({**vars(prediction), "top": [vars(guess) for guess in prediction.top], **more})


def _table(names: Sequence[str], labels: Sequence[str], verbose: bool) -> Callable[[Prediction], str]:
    """Lines whose columns align, for the names and labels that are to come: plain unless on a terminal."""
    widest_name = max((width(printable(name)) for name in names), default=0)
    answer = answer_columns(labels)

    def line(prediction: Prediction) -> str:
        took = ", ".join(f"{step} {ms:.0f} ms" for step, ms in prediction.ms.items()) if verbose else ""
        return "  ".join([pad(printable(prediction.source), widest_name), *answer(prediction, took)])

    return line


if __name__ == "__main__":
    sys.exit(main())
