"""The README.md of a model folder: a model card in the format of Hugging Face.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.parity.result import ParityResult
from export.parity.table import (
    column_explanations,
    confidence_note,
    detailed_verdict,
    parity_columns,
)
from export.targets.stage import parity_text
from export.targets.target import CompiledTarget
from runtime.inference.engines import default_threads
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

# Of models/vgg16, the base without `python -m train --weights`.
_BUNDLED_SHA256 = "ad23db746ccf8c6e4763c18ce5f1889a05ac553f47f2fdac68bdf7b5dfd04494"

_FULL_INT8 = """
`{}` computes in int8 from the picture to the last pooling layer, for microcontrollers (TensorFlow Lite
Micro) and neural processors. Its input and outputs are those of the other files."""

_HEADS = {
    "pooled": "global average pooling and one dense layer",
    "article": "a dense layer of 256 units, dropout, and a dense layer with one unit per class",
}


def model_card(
    index: Index,
    run: Run,
    results: Sequence[ParityResult],
    recipes: Mapping[str, str],
    float16: str,
    targets: Sequence[CompiledTarget] = (),
) -> str:
    """The Markdown text. `recipes` says how each int8 file, by name, was quantized; `float16` sums up the
    comparison in float16 arithmetic. `results` may include files that are not in the folder (`--keep`).
    """
    in_folder = {(file.format, file.precision) for file in index.files}
    kept = [result for result in results if result.file in in_folder]
    sections = [
        _front_matter(index, kept),
        _summary(index.contract, run),
        _use(index.contract, run),
        _limits(index.contract),
        _training_data(index.contract, run),
        "## Files\n\n" + _files(index, recipes),
        "## Parity with the trained model\n\n" + _parity(results, kept) + f"\n\n{_escaped(float16)}.",
        *([_targets(targets)] if targets else []),
        f"## Licences\n\n{_origin(index.contract)} Changes: they are {_changes(run)}, rounded or quantized, "
        "and followed by a new head. The software that made the files is under the licence Apache 2.0.",
        f"## Citation\n\n```bibtex\n{_BIBTEX}\n```",
        f"Release {index.contract.release} of this folder, exported {index.contract.created} with "
        + ", ".join(f"{name} {version}" for name, version in index.contract.versions.items())
        + ".",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(contract: Contract, run: Run) -> str:
    head = _HEADS.get(run.recipe, f"the {run.recipe} head")
    text = (
        f"# {contract.name}\n\n"
        f"A VGG16 image classifier with {len(contract.labels)} classes for small computers. Its convolution "
        f"layers come from {'ImageNet' if _is_bundled(contract) else 'the file of `--weights`'} "
        f"and are {_changes(run)}. Its head is {head}."
    )
    if run.compressed:
        text += _compression(run)
    if contract.synthetic:
        text += (
            "\n\n**Trained on generated pictures: it shows that the pipeline works. It cannot label photos.**"
        )
    return text + "\n\n## Classes\n\n" + ", ".join(_escaped(label) for label in contract.labels)


def _is_bundled(contract: Contract) -> bool:
    return contract.base_sha256 == _BUNDLED_SHA256


def _origin(contract: Contract) -> str:
    """Where the convolution weights come from, and their licence."""
    imagenet = (
        "the ImageNet VGG16 of the Visual Geometry Group, University of Oxford, "
        "https://www.robots.ox.ac.uk/~vgg/research/very_deep/, under the licence CC BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/)"
    )
    if _is_bundled(contract):
        return f"The convolution weights come from {imagenet}."
    return (
        "The convolution weights come from the base weights with the sha256 above, which `--weights` gave to "
        "training, and their licence also applies to this model. The weights of `--weights imagenet` are "
        f"{imagenet}."
    )


def _changes(run: Run) -> str:
    """The changes of the convolution layers in training."""
    if run.compressed:
        return "compressed and then trained" if run.compressed["epochs"] else "compressed"
    block = run.settings.get("fine_tune", "none")
    if run.fine_tuning_discarded:
        return f"frozen (fine-tuning from {block} on did not lower the loss on the validation photos)"
    return "frozen" if block == "none" else f"frozen below {block} and fine-tuned from there on"


def _compression(run: Run) -> str:
    """A table of the uncompressed and the compressed model."""
    done = run.compressed
    compressed_top1 = {split: (figures or {}).get("top1") for split, figures in run.metrics.items()}
    lines = [
        "| model | input | GMAC per photo | top-1, val | top-1, test |",
        "|---|---|---:|---:|---:|",
    ]
    for name, size, macs, top1 in (
        ("uncompressed, float32", done["of_size"], done["of_macs"], done["uncompressed_top1"]),
        ("compressed, float32", done["size"], done["macs"], compressed_top1),
    ):
        shares = ["" if (share := top1.get(split)) is None else f"{share:.1%}" for split in ("val", "test")]
        lines.append("| " + " | ".join([name, f"{size} x {size}", f"{macs / 1e9:.2f}", *shares]) + " |")
    through = done["through"]
    teacher = f"model of {_escaped(through)}" if through else "uncompressed model"
    distilled = f" and trained on the outputs of the {teacher}" if done["epochs"] else ""
    origin = _escaped(done["from"])
    if through:
        origin += f", made in steps, the last one from the run {_escaped(through)}"
    return (
        f"\n\nIt is a compressed form of the run {origin}: whole channels were removed, "
        f"and the remaining weights were fitted again{distilled}. It needs "
        f"{done['of_macs'] / done['macs']:.1f} times fewer multiplications.\n\n" + "\n".join(lines)
    )


def _use(contract: Contract, run: Run) -> str:
    height, width = contract.input_size
    text = (
        "## Use\n\n```python\n"
        "from runtime import Classifier\n\n"
        f'classify = Classifier("{contract.name}")  # the path of this folder\n'
        'print(classify("photo.jpg").answer)  # a label, or "unknown"\n```\n\n'
        f"Every file has the input `image`, uint8 [1, {height}, {width}, 3], RGB, 0 to 255, and the output "
        f"`probabilities`, float32 [1, {len(contract.labels)}], in the order of the classes above. Stretch "
        "the photo to the input size with an antialiased bilinear filter. The file contains all other "
        "preprocessing, and the labels."
    )
    if "known" in contract.thresholds:
        from train.network.novelty import UNKNOWN_RATE  # here, because it loads Keras

        text += (
            "\n\nThe output `known`, float32 [1, 1], is the score that the photo belongs to one of the "
            f"classes. Below {contract.thresholds['known']:g} the runtime reports `unknown`. With this "
            f"threshold, at most {UNKNOWN_RATE:.1%} of the validation photos are rejected as unknown."
            f"{_unknown_pictures(run.metrics.get('test') or {})}"
        )
        text += (
            f"\n\nThe output `features`, float32 [1, {contract.features}], describes the photo; the other "
            "outputs are computed from it. `python -m runtime.adapt` uses it to learn what the camera sees "
            "when no object of a class is there."
        )
    return text


def _unknown_pictures(test: Mapping[str, Any]) -> str:
    """How many photos of the classes were rejected, and pictures of other things named, in the test split."""
    text = ""
    if "unknown" in test:
        text = f" The trained model rejected {test['unknown']:.1%} of the {test['n']:,} test photos."
    if "named" in test:
        text += (
            f" Of {test['negatives']:,} test photos of none of the classes, {test['named']:.1%} got the name "
            "of a class."
        )
    if "default_named" in test:
        drawings, named = test["default_negatives"], test["default_named"]
        text += (
            f" Of {drawings:,} drawings of other things, {named:.1%} got the name of a class. Drawings like "
            "these were a part of the training, so photos of other things get a name more often; "
            "docs/unknown-pictures.md of vgg-edge shows how often for its own models."
        )
    return text


def _limits(contract: Contract) -> str:
    photos = "pictures" if contract.synthetic else "photos"
    other = "can also get" if contract.thresholds else "also gets"
    return (
        "## Intended use and limits\n\n"
        f"The model is for photos in which an object of one of the {len(contract.labels)} classes fills most "
        f"of the frame. A photo of anything else {other} one of these labels. Light, cameras and backgrounds "
        f"that are missing from the training {photos} lower the accuracy: measure it on your own photos. Do "
        "not use the model for decisions about safety: do not eat a plant because of its label."
    )


def _training_data(contract: Contract, run: Run) -> str:
    photos = "generated pictures" if contract.synthetic else "photos"
    counts = {split: len(run.dataset.split(split)) for split in ("train", "val", "test")}
    figures = ", ".join(
        f"top-1 {found['top1']:.1%} on {found['n']:,} {split} photos"
        for split, found in run.metrics.items()
        if found
    )
    return (
        f"## Training data\n\n{counts['train']:,} {photos} for training, {counts['val']:,} for validation "
        f"and {counts['test']:,} for testing, without overlap. Manifest sha256 `{contract.data_sha256}`; "
        f"base weights sha256 `{contract.base_sha256}`."
        + (f" Accuracy of the trained float32 model: {figures}." if figures else "")
    )


def _front_matter(index: Index, results: Sequence[ParityResult]) -> str:
    """YAML. Texts are JSON strings, which are valid YAML, so that no name can break it."""
    formats = sorted({file.format for file in index.files})
    lines = [
        "---",
        f"license: {'cc-by-4.0' if _is_bundled(index.contract) else 'other'}",
        f"library_name: {'litert' if 'tflite' in formats else 'onnx'}",
        "pipeline_tag: image-classification",
        f"tags: {_json(['vgg16', *formats, 'edge', 'raspberry-pi'])}",
        "metrics: [accuracy]",
        "model-index:",
        f"- name: {_json(index.contract.name)}",
        "  results:",
    ]
    for n in sorted({result.n for result in results}):
        lines += [
            "  - task: {type: image-classification}",
            f"    dataset: {{type: imagefolder, name: {_json(f'{n} test photos of the run')}}}",
            "    metrics:",
        ]
        for result in results:
            if result.n == n and not result.error:
                name = f"top-1 of {result.format} {result.precision} in {result.engine}"
                lines.append(f"    - {{type: accuracy, value: {result.top1:.4f}, name: {_json(name)}}}")
    return "\n".join([*lines, "---"])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _files(index: Index, recipes: Mapping[str, str]) -> str:
    lines = ["| file | MB | GMAC per photo | precision or int8 recipe |", "|---|---:|---:|---|"]
    for file in index.files:
        recipe, gmacs = recipes.get(file.file) or file.precision, f"{file.metrics['macs'] / 1e9:.2f}"
        lines.append(f"| `{file.file}` | {file.bytes / 1e6:.1f} | {gmacs} | {_escaped(recipe)} |")
    full = [file.file for file in index.files if file.precision == "full_int8"]
    lines += [_FULL_INT8.format(name) for name in full]
    return "\n".join(lines)


def _parity(results: Sequence[ParityResult], kept: Sequence[ParityResult]) -> str:
    columns = parity_columns(results) | {
        "verdict": [_escaped(detailed_verdict(result)) for result in results]
    }
    texts = 3  # format, precision and engine are texts, and the verdict; the other columns are numbers
    lines = [
        "| " + " | ".join(map(_escaped, columns)) + " |",
        "|" + "---|" * texts + "---:|" * (len(columns) - texts - 1) + "---|",
    ]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)]
    explanations = [
        f"- {_escaped(name)}: {_escaped(text)}"
        for name, text in column_explanations(results, default_threads())
    ]
    text = (
        "Every file was run in the engines of this table on test photos and compared with the trained "
        "float32 Keras model."
    )
    if len(kept) < len(results):
        text += " The folder holds only the files that are listed under Files; the other files were not kept."
    note = (
        "Of the files in the folder that were compared on the most photos, the file that agrees least: "
        + confidence_note(kept)
    )
    return text + "\n\n" + "\n".join([*lines, "", *explanations, "", note])


def _targets(targets: Sequence[CompiledTarget]) -> str:
    """The compiled file, the figures and the verdict of each target."""
    lines = ["## Files for boards", ""]
    for target in targets:
        figures = "; ".join(f"{name}: {text}" for name, text in target.report.items())
        text = f"{figures}. {parity_text(target.parity)}, compared in {target.compared_in}: {target.verdict}."
        lines.append(f"- `{target.main_file}`, {_escaped(target.compiler)}. {_escaped(text)}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text as Markdown, with all markup characters escaped."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|!" else character for character in text)
