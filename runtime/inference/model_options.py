"""The flags of every command that classifies: which model, which engine."""

import argparse
from typing import Any

from runtime.common.cli import percentage, positive_int
from runtime.inference.engines import ENGINES
from runtime.model_file.loader import KEY_VARIABLE


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of Classifier's arguments, without those of add_answer_options."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="folder with a model.json, or a .tflite or .onnx file (default: the newest model under ./models "
        "that was trained on photos, else the released model)",
    )
    parser.add_argument(
        "--key",
        metavar="PUBLIC.pem",
        help=f"run only a model that this key signed (default: the key file that {KEY_VARIABLE} names)",
    )
    parser.add_argument(
        "--correction",
        metavar="FILE",
        help="file that `python -m runtime.adapt` wrote; the word none uses no correction (default: the file "
        "next to the model)",
    )
    parser.add_argument(
        "--allow-correction",
        action="store_true",
        help="use a correction with a signed model too; nobody signs corrections",
    )
    parser.add_argument(
        "--learned",
        metavar="FOLDER",
        help="folder that `python -m runtime.teach` wrote; the word none uses no learned state (default: the "
        "folder next to the model)",
    )
    parser.add_argument(
        "--allow-learning",
        action="store_true",
        help="learn, and use a learned state, with a signed model too; nobody signs a learned state. Also "
        "lets the web page learn when other machines can reach the service",
    )
    parser.add_argument(
        "--allow-rollback",
        action="store_true",
        help="run a signed model older than the newest that ran here; its release becomes the minimum",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", *ENGINES],
        default="auto",
        help="inference engine (default: auto, the fastest that was measured on this machine; without a "
        "measurement, cameras, services and several photos time the engines in the background)",
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads of the engine (default: the fastest measured number, else all cores)",
    )


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that gives answers."""
    parser.add_argument(
        "--top",
        type=positive_int,
        metavar="N",
        default=3,
        help="classes in an answer (default: %(default)s)",
    )
    add_reject_option(parser)


def add_reject_option(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of the threshold of `known`: of a command that gives answers, or fits them."""
    parser.add_argument(
        "--reject",
        type=percentage,
        metavar="PERCENT",
        help="answer unknown for this share of the photos of the classes, such as 10%%, so that fewer "
        "pictures of other things get a name (default: the threshold of the training, about 2%%)",
    )


def classifier_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns Classifier's keyword arguments from the parsed flags."""
    names = (
        *("engine", "threads", "top", "reject", "key", "correction", "allow_correction", "learned"),
        *("allow_learning", "allow_rollback"),
    )
    return {name: getattr(arguments, name) for name in names if name in arguments}
