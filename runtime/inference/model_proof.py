"""Proves a model before it serves: it must answer the golden picture as its contract says, and in time.

The proof runs in a separate process, which is stopped when the model hangs, and which may crash. It gets the
arguments of `run_proof` as JSON, and prints one JSON line.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import ModelError, UserError
from runtime.common.isolated_python import isolated_python
from runtime.inference.classifier import Classifier
from runtime.model_file.contract import Contract
from runtime.model_file.golden import golden_picture

PROOF_TIMEOUT = 60.0  # seconds; the uncompressed VGG16 takes 5 on a Raspberry Pi 4
MAX_SUM_ERROR = 0.05  # of the probabilities; int8 outputs are rounded one by one
# The contract holds the answer of the trained float model. int8 files differ by a few hundredths, and by more
# where a picture lies between two classes. Wrong weights or swapped channels change the label.
MAX_PROBABILITY_ERROR = 0.25
MAX_KNOWN_ERROR = 0.5

START = "from runtime.inference.model_proof import main; main()"


def prove_model(path: str | Path | None, options: Mapping[str, Any]) -> str:
    """Returns the sha256 of the model that Classifier(path, **options) loads, after it has passed the proof.

    Raises ModelError if it fails, hangs or crashes, or if it does not load.
    """
    return str(run_proof(START, path, options, PROOF_TIMEOUT)["sha256"])


def run_proof(
    start: str, path: str | Path | None, options: Mapping[str, Any], timeout: float
) -> dict[str, Any]:
    """Returns the JSON object that the Python program `start` prints with `print_proof`, in a process.

    Raises ModelError if the model fails, does not load, crashes, or hangs for `timeout` seconds.
    """
    arguments = json.dumps([path, dict(options), timeout], default=str)
    try:
        done = subprocess.run(
            isolated_python(start, arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"it did not answer its test picture within {timeout:g} s") from None
    try:
        answer = dict(json.loads(done.stdout.splitlines()[-1]))
        error = str(answer["error"])
    except (IndexError, KeyError, TypeError, ValueError):
        raise ModelError(f"it ended the process that tested it (status {done.returncode})") from None
    if error:
        raise ModelError(error)
    return answer


def check_answer(classifier: Classifier) -> None:
    """Runs the golden picture. Raises ModelError if the outputs cannot be right, EngineError if it fails."""
    contract = classifier.model.contract
    try:
        check_outputs(classifier.session(golden_picture(*contract.input_size)[np.newaxis]), contract)
    except ModelError as error:
        raise ModelError(f"{classifier.model.path}: {error}: export it again") from None


def check_outputs(outputs: Mapping[str, NDArray[np.float32]], contract: Contract) -> None:
    """Checks the outputs for the golden picture: `probabilities` [1, C], and `known` [1, 1] if there is one.

    Raises ModelError, without the model's path, if they cannot be right or differ from the contract's answer.
    """
    probabilities = outputs["probabilities"][0].astype(np.float64)
    known = float(outputs["known"].item()) if "known" in outputs else None
    values = [*probabilities, *([] if known is None else [known])]
    if not all(0 <= value <= 1 for value in values):  # NaN is not
        raise ModelError("computes a probability that is not from 0 to 1")
    if abs(probabilities.sum() - 1) > MAX_SUM_ERROR:
        raise ModelError(f"its probabilities sum to {probabilities.sum():.3f}, not to 1")
    if contract.golden is None:  # contract version 1
        return
    error = float(np.abs(probabilities - contract.golden.probabilities).max())
    if error > MAX_PROBABILITY_ERROR:
        raise ModelError(
            f"a probability of its test picture differs by {error:.3f} from the trained model "
            f"(limit {MAX_PROBABILITY_ERROR:g})"
        )
    expected = contract.golden.known
    if known is not None and expected is not None and abs(known - expected) > MAX_KNOWN_ERROR:
        raise ModelError(
            f"`known` of its test picture is {known:.3f}, the trained model computed {expected:.3f} "
            f"(limit {MAX_KNOWN_ERROR:g} apart)"
        )


def main() -> None:
    """Runs the proof, for `prove_model` in another process."""
    print_proof(lambda classifier: {})


def print_proof(measure: Callable[[Classifier], Mapping[str, Any]]) -> None:
    """Runs the proof, and prints its result and the values of `measure` for the model as a JSON object."""
    path, options, timeout = json.loads(sys.argv[1])
    with suppress(AttributeError, ValueError):  # Windows
        signal.alarm(int(timeout) + 5)  # ends this process even if its parent is gone
    try:
        classifier = Classifier(path, **options)
        check_answer(classifier)
        result = {"sha256": classifier.model.sha256, "error": "", **measure(classifier)}
    except UserError as error:
        result = {"sha256": "", "error": str(error)}
    print(json.dumps(result))
