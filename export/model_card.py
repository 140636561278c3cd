"""The README.md beside exported files: a model card in the Hugging Face form, from recorded figures alone.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from export.parity.parity import ParityResult, confidence_note, known_agreement, percent, verdict
from runtime.model_file.contract import Contract
from runtime.model_file.index import Index

if TYPE_CHECKING:
    from train.run import Run

_BIBTEX = """\
@inproceedings{simonyan2015very,
  title     = {Very Deep Convolutional Networks for Large-Scale Image Recognition},
  author    = {Simonyan, Karen and Zisserman, Andrew},
  booktitle = {International Conference on Learning Representations},
  year      = {2015}
}"""

_RECIPES = {
    "pooled": "the mean over positions and one dense layer",
    "article": "a dense layer of 256 and one of the classes, with dropout between",
}


def card(index: Index, run: Run, rows: Sequence[ParityResult], recipes: Mapping[str, str]) -> str:
    """The card of one exported set. `recipes` says how a file, by its name, was quantized."""
    contract = index.contract
    counts = {split: len(run.dataset.split(split)) for split in ("train", "val", "test")}
    height, width = contract.input_size
    photos = "drawn pictures" if contract.synthetic else "photos"
    sections = [
        _front_matter(index, rows),
        f"# {contract.name}",
        f"A VGG16 picture classifier of {len(contract.labels)} classes for small computers: the ImageNet "
        f"convolution layers, {_trained(run)}, under {_RECIPES.get(run.recipe, f'the {run.recipe} head')}."
        + _compressed(run),
        _synthetic(contract.synthetic),
        "## Classes\n\n" + ", ".join(_plain(label) for label in contract.labels),
        "## Use\n\n```python\n"
        "from runtime import Classifier\n\n"
        f'classify = Classifier("{contract.name}")  # this folder\n'
        'print(classify("photo.jpg"))\n```\n\n'
        f"Every file takes `image`, uint8 [1, {height}, {width}, 3], RGB, 0 to 255, and gives "
        f"`probabilities`, float32 [1, {len(contract.labels)}], in the order above. The picture is "
        "stretched to that size, bilinear and antialiased; all else is in the file, and so are the labels."
        + _known(contract),
        "## Intended use and limits\n\n"
        f"For pictures of one of the {len(contract.labels)} classes that fill most of the frame. A picture "
        f"of anything else {'may get' if contract.thresholds else 'gets'} one of these names too. Light, "
        f"cameras and backgrounds that the training {photos} did not have lower the accuracy; measure it on "
        "your own. Not for decisions about safety: "
        "no plant should be eaten on its word.",
        "## Training data\n\n"
        f"{counts['train']:,} {photos} to train on, {counts['val']:,} to choose the best epoch, "
        f"{counts['test']:,} to test, none in two of these. Manifest sha256 `{contract.data_sha256}`; base "
        f"weights sha256 `{contract.base_sha256}`. {_plain_figures(run)}",
        "## Files\n\n" + _files(index, recipes),
        "## Parity with the trained model\n\n" + _parity(rows),
        "## Licences\n\n"
        "The convolution weights come from the ImageNet VGG16 of the Visual Geometry Group, University of "
        "Oxford, https://www.robots.ox.ac.uk/~vgg/research/very_deep/, licensed CC BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/); here they are quantized or rounded, "
        f"{_trained(run)}, under a new head. The software that made the files is licensed Apache 2.0.",
        f"## Citation\n\n```bibtex\n{_BIBTEX}\n```",
        f"Made {contract.created} with "
        + ", ".join(f"{name} {version}" for name, version in contract.versions.items())
        + ".",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(index: Index, rows: Sequence[ParityResult]) -> str:
    """YAML. Each text is written as JSON, which YAML reads, so that no name can break it."""
    formats = sorted({file.format for file in index.files})
    lines = [
        "---",
        "license: cc-by-4.0",
        "library_name: litert",
        "pipeline_tag: image-classification",
        f"tags: {_json(['vgg16', *formats, 'edge', 'raspberry-pi'])}",
        "metrics: [accuracy]",
        "model-index:",
        f"- name: {_json(index.contract.name)}",
        "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {{type: imagefolder, name: {_json(f'{rows[0].n} test photos of the run')}}}",
        "    metrics:",
    ]
    for row in (row for row in rows if not row.error):
        name = f"top-1 of {row.format} {row.precision} in {row.engine}"
        lines.append(f"    - {{type: accuracy, value: {row.top1:.4f}, name: {_json(name)}}}")
    return "\n".join([*lines, "---"])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _trained(run: Run) -> str:
    """What was done to the base's layers."""
    if run.compressed:
        return "compressed and trained on" if run.compressed["epochs"] else "compressed"
    block = run.settings.get("fine_tune", "none")
    return "frozen" if block == "none" else f"frozen below {block} and trained on from there"


def _compressed(run: Run) -> str:
    """Both models' sizes and figures, of a run that was compressed."""
    done = run.compressed
    if not done:
        return ""
    lines = ["| model | input | GMAC a picture | top-1, val | top-1, test |", "|---|---|---:|---:|---:|"]
    own = {split: (figures or {}).get("top1") for split, figures in run.metrics.items()}
    for name, size, macs, top1 in (
        ("uncompressed, float32", 224, done["of_macs"], done["uncompressed_top1"]),
        ("compressed, float32", done["size"], done["macs"], own),
    ):
        shares = [percent(top1.get(split)) for split in ("val", "test")]
        cells = [name, f"{size} x {size}", f"{macs / 1e9:.2f}", *shares]
        lines.append("| " + " | ".join(cells) + " |")
    taught = "" if not done["epochs"] else " and taught the uncompressed model's answers"
    return (
        f"\n\nIt was compressed from the run {_plain(done['from'])}: whole channels were left out, and "
        f"what stays was solved anew{taught}, for {done['of_macs'] / done['macs']:.1f} times fewer "
        "multiplications.\n\n" + "\n".join(lines)
    )


def _known(contract: Contract) -> str:
    if "known" not in contract.thresholds:
        return ""
    return (
        "\n\nIt also gives `known`, float32 [1, 1]: how likely the picture is of any of the classes. Under "
        f"{contract.thresholds['known']:g} the runtime answers `unknown`. The threshold refuses 2 % of the "
        "validation photos."
    )


def _synthetic(synthetic: bool) -> str:
    return (
        "**Trained on drawn pictures: it shows that the path works, and knows nothing of photos.**"
        if synthetic
        else ""
    )


def _plain_figures(run: Run) -> str:
    said = [
        f"top-1 {figures['top1']:.1%} of {figures['n']:,} {split} photos"
        for split, figures in run.metrics.items()
        if figures
    ]
    return f"The trained float32 model: {', '.join(said)}." if said else ""


def _files(index: Index, recipes: Mapping[str, str]) -> str:
    lines = ["| file | MB | GMAC a picture | how it was made |", "|---|---:|---:|---|"]
    for file in index.files:
        made, gmacs = recipes.get(file.file) or file.precision, f"{file.metrics['macs'] / 1e9:.2f}"
        lines.append(f"| `{file.file}` | {file.bytes / 1e6:.1f} | {gmacs} | {_plain(made)} |")
    return "\n".join(lines)


def _parity(rows: Sequence[ParityResult]) -> str:
    tells = any(row.known_disagreements is not None for row in rows)
    compressed = any(row.uncompressed_agreement is not None for row in rows)
    head = [
        "format",
        "precision",
        "engine",
        "n",
        "top-1",
        "agreement",
        "mean |Δp|",
        "p99",
        "max",
        *(["known"] if tells else []),
        *(["uncompressed"] if compressed else []),
        "ms",
        "verdict",
    ]
    lines = ["| " + " | ".join(map(_plain, head)) + " |"]
    lines.append("|---|---|---" + "|---:" * (7 + tells + compressed) + "|---|")
    for row in rows:
        cells = [row.format, row.precision, row.engine, str(row.n), f"{row.top1:.1%}", f"{row.agreement:.1%}"]
        cells += [f"{value:.6f}" for value in (row.mean_dp, row.p99_dp, row.max_dp)]
        cells += [known_agreement(row)] if tells else []
        cells += [percent(row.uncompressed_agreement)] if compressed else []
        lines.append("| " + " | ".join([*cells, f"{row.ms:.1f}", _plain(verdict(row))]) + " |")
    return (
        "Each file in each engine against the float32 Keras model, over the same test photos. |Δp| is a "
        "photo's largest difference over all its class probabilities; agreement is the share of photos "
        "with the same top-1; ms is the median of one inference on the machine that exported"
        + ("; known is the share of photos that both call known, or both unknown" if tells else "")
        + ("; uncompressed is the share with the top-1 of the uncompressed model" if compressed else "")
        + ".\n\n"
        + "\n".join(lines)
        + f"\n\n{confidence_note(rows)}."
    )


def _plain(text: str) -> str:
    """A label or a sentence as Markdown text, whatever characters it has."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|!" else character for character in text)
