"""Parity results as a table for a terminal, as sentences, and as parity.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields

from export.parity.gates import FAILED, GATES, MIN_PHOTOS, broken_bounds, verdict
from export.parity.result import FileKey, ParityResult
from runtime.common.text import align_columns, pluralize
from runtime.model_file.formats import FORMATS, PRECISIONS

CONFIDENCE = 0.95
_LEFT_ALIGNED = ("format", "precision", "engine", "verdict")


def parity_report(results: Sequence[ParityResult], names: Mapping[FileKey, str], threads: int) -> str:
    """The table, an explanation of its columns, and the sentence that names the file to use.

    `names` are the names of the files in the folder; `threads` is the number that latency was measured on.
    """
    explanations = column_explanations(results, threads)
    width = max(len(name) for name, _ in explanations)
    lines = [table(results), "", *(f"{name.ljust(width)}  {text}" for name, text in explanations)]
    lines += ["", confidence_note(results)]
    if sentence := recommendation(results, names):
        lines += ["", sentence]
    return "\n".join(lines)


def table(results: Sequence[ParityResult]) -> str:
    """One line per file and engine."""
    columns = parity_columns(results) | {"verdict": [verdict(result) for result in results]}
    rows = list(zip(*([name, *cells] for name, cells in columns.items()), strict=True))
    return "\n".join(align_columns(rows, left=_LEFT_ALIGNED))


def parity_columns(results: Sequence[ParityResult]) -> dict[str, list[str]]:
    """The cells of a parity table by column, without the verdict."""
    columns: dict[str, list[str]] = {
        "format": [result.format for result in results],
        "precision": [result.precision for result in results],
        "engine": [result.engine for result in results],
        "photos": [str(result.n) for result in results],
        "MB": [f"{result.bytes / 1e6:.1f}" for result in results],
        "top-1": [f"{result.top1:.1%}" for result in results],
        "same answer": [f"{result.agreement:.1%}" for result in results],
        "mean |Δp|": [f"{result.mean_dp:.6f}" for result in results],
        "p99 |Δp|": [f"{result.p99_dp:.6f}" for result in results],
        "max |Δp|": [f"{result.max_dp:.6f}" for result in results],
    }
    if len(set(columns["photos"])) == 1:
        del columns["photos"]
    if any(result.known_agreement is not None for result in results):
        columns["same unknown"] = [_percent(result.known_agreement) for result in results]
    if any(result.max_dfeatures is not None for result in results):
        columns["|Δfeatures|"] = [_percent(result.max_dfeatures) for result in results]
    if any(result.uncompressed_agreement is not None for result in results):
        columns["same as uncompressed"] = [_percent(result.uncompressed_agreement) for result in results]
    columns["ms"] = [f"{result.ms:.1f}" for result in results]
    return columns


def column_explanations(results: Sequence[ParityResult], threads: int) -> list[tuple[str, str]]:
    """The columns that need an explanation, and their explanations."""
    columns = parity_columns(results)
    trained = sorted({(result.n, f"{result.reference_top1:.1%}") for result in results})
    explanations = {
        "photos": "number of test photos on which the file is compared",
        "top-1": "share of the test photos that the file labels correctly "
        f"(trained model: {', '.join(f'{top1} of {n}' for n, top1 in trained)})",
        "same answer": "share of the photos with the same label as the trained float32 model",
        "mean |Δp|": "how far a photo's probabilities move, on average (0.01 is 1 point of 100)",
        "p99 |Δp|": "the same for the photo at the 99th percentile",
        "max |Δp|": "the same for the photo that moves most",
        "same unknown": "share of the photos with the same decision between known and unknown",
        "|Δfeatures|": "how far the features of a photo move, as a share of their length, at most",
        "same as uncompressed": "share of the photos with the same label as the uncompressed model",
        "ms": f"median time of one photo on {pluralize(threads, 'thread')} of this computer",
        "verdict": f"passed, failed, or too few photos: some limits apply from {MIN_PHOTOS} photos on",
    }
    return [(name, text) for name, text in explanations.items() if name in columns or name == "verdict"]


def recommendation(results: Sequence[ParityResult], names: Mapping[FileKey, str]) -> str:
    """The sentence that names the file that the runtime prefers among those that did not fail."""
    failed = {result.file for result in results if verdict(result) == FAILED}
    usable = [file for file in names if file not in failed and any(file == row.file for row in results)]
    if not usable:
        return ""
    best = min(usable, key=lambda file: (FORMATS.index(file.format), PRECISIONS.index(file.precision)))
    n, different = max((row.n, row.disagreements) for row in results if row.file == best)
    photos = f"all {n} photos" if not different else f"{n - different} of {n} photos"
    if n == 1 and not different:
        photos = "the 1 photo"
    return f"Use {names[best]}: same answer as the trained model on {photos}."


def confidence_note(results: Sequence[ParityResult]) -> str:
    """How much n photos prove, by the file that agrees least of those compared on the most photos."""
    compared = [result for result in results if not result.error]
    n = max(result.n for result in compared or results)
    most = max((result.disagreements for result in compared if result.n == n), default=n)
    note = (
        f"{most or 'None'} of {n} photos got another label; on new photos, up to {upper_bound(n, most):.1%} "
        f"may ({CONFIDENCE:.0%} confidence)."
    )
    if n >= MIN_PHOTOS or not any(GATES[result.precision].needs_many_photos for result in results):
        return note
    return f"{note} All limits apply from {MIN_PHOTOS} photos on."


def upper_bound(n: int, k: int) -> float:
    """The one-sided upper bound on a share of which k in n were seen (Clopper and Pearson, 1934), at
    CONFIDENCE.
    """
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(k, n, alternative="less").proportion_ci(CONFIDENCE).high)


def parity_csv(results: Iterable[ParityResult]) -> str:
    """parity.csv: the fields of each result, the agreements, and the verdict with the bounds it breaks."""
    file = io.StringIO()
    names = [field.name for field in fields(ParityResult)]
    agreements = ("agreement", "uncompressed_agreement")
    writer = csv.DictWriter(file, [*names, *agreements, "verdict"], lineterminator="\n")
    writer.writeheader()
    for result in results:
        shares = {name: getattr(result, name) for name in agreements}
        writer.writerow({**asdict(result), **shares, "verdict": detailed_verdict(result)})
    return file.getvalue()


def detailed_verdict(result: ParityResult) -> str:
    """The verdict, and after a colon the bounds that a failed result breaks."""
    return ": ".join(filter(None, (verdict(result), "; ".join(broken_bounds(result)))))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
