from __future__ import annotations

import base64
import html
import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import Dataset, LeftOut, Photo
from train.data.find_photos import find_photos
from train.data.near_duplicates import Pair
from train.data.negatives import default_negatives_folder
from train.intervals import confidence_interval
from train.label_errors import SuspectLabel, judged_labels
from train.learning_curve import LearningCurve, LearningPoint
from train.metrics import (
    AddedAnswer,
    PictureOutputs,
    added_answers,
    compute_metrics,
    compute_negative_metrics,
)
from train.report.report import LISTED_FILES, SHOWN_MISTAKES, SHOWN_PAIRS, write_report
from train.settings import RECIPES

HISTORY = [
    {"stage": stage, "epoch": epoch, "accuracy": 0.5, "loss": 1 / epoch, "val_accuracy": 0.4, "val_loss": 0.9}
    for stage, epochs in (("head", 60), ("block5", 6))
    for epoch in range(1, epochs + 1)
]
VOID = {"meta", "br", "img"}
INLINE = {"bdi", "b", "span", "code"}  # no space separates their text from the text before


class Page(HTMLParser):
    """A parsed report; every element must be closed where it was opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.parts.append("" if tag in INLINE else " ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(
    path: Path,
    dataset: Dataset,
    probabilities: dict[str, NDArray[Any]],
    history: Sequence[dict[str, Any]] = HISTORY,
    pairs: Sequence[Pair] = (),
    negatives: Mapping[str, PictureOutputs] | None = None,
    added: Sequence[AddedAnswer] = (),
    suspects: Sequence[SuspectLabel] | None = None,
    curve: LearningCurve | None = None,
    discarded: bool = False,
    **settings: Any,
) -> Page:
    given = replace(RECIPES[settings.pop("recipe", "pooled")], **settings)
    metrics = {
        split: compute_metrics(
            rows,
            np.array([dataset.classes.index(photo.label) for photo in dataset.split(split)], int),
            dataset.classes,
        )
        for split, rows in probabilities.items()
    }
    none = PictureOutputs(np.zeros((0, len(dataset.classes))), None)
    for split, results in (negatives or {}).items():
        if (of := metrics[split]) and results.known is not None:
            of["negatives"] = compute_negative_metrics(
                results.probabilities, results.known >= 0.5, dataset.classes
            )
    record = {
        "name": "mine",
        "created": "2026-11-25T19:45:46+00:00",
        "recipe": given.recipe,
        "settings": asdict(given) | {"weights": "base.safetensors"},
        "versions": {"python": "3.11"},
        "device": "cpu:0",
        "fine_tuning_discarded": discarded,
        "temperature": 1.25,
        "thresholds": {"known": 0.5} if given.known else {},
        "metrics": {split: of and {"ece_before": 0.25, "unknown": 0.0625} for split, of in metrics.items()},
    }
    of_negatives = {"val": none, "test": none, **(negatives or {})}
    write_report(
        path, record, dataset, history, metrics, probabilities, of_negatives, pairs, added, suspects, curve
    )
    return Page(path)


def made_up(classes: Sequence[str], train: int, val: int, test: int, root: Path = Path("nowhere")) -> Dataset:
    """A data set whose photos do not exist."""
    counts = {"train": train, "val": val, "test": test}
    return Dataset(
        root,
        tuple(classes),
        tuple(
            Photo(f"{split}/{label}/{number}.jpg", label, split, "")
            for split, count in counts.items()
            for label in classes
            for number in range(count)
        ),
    )


def all_right(dataset: Dataset) -> dict[str, NDArray[Any]]:
    """Probabilities that predict every photo correctly."""
    rest = 0.1 / (len(dataset.classes) - 1)
    return {
        split: np.array(
            [[0.9 if name == photo.label else rest for name in dataset.classes] for photo in photos]
        ).reshape(-1, len(dataset.classes))
        for split in ("val", "test")
        for photos in [dataset.split(split)]
    }


@pytest.fixture(scope="module")
def hostile(synthetic_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Real pictures in classes whose names are HTML, quotes and template code."""
    root = tmp_path_factory.mktemp("photos")
    for name, flower in (("<script>", "roses"), ('a&b\' "c"', "daisy"), ("{{ 1+1 }}", "tulips")):
        shutil.copytree(synthetic_photos / flower, root / name)
    (root / "<script>" / "<b>.txt").write_text("no picture")
    return find_photos(root)


@pytest.fixture(scope="module")
def planted(hostile: Dataset) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Probabilities with two mistakes on test, and the captions of these photos."""
    probabilities = all_right(hostile)
    photos = hostile.split("test")
    captions = []
    for place, probability in ((-1, 0.975), (0, 0.55)):
        right = hostile.classes.index(photos[place].label)
        wrong = (right + 1) % 3
        probabilities["test"][place] = np.eye(3)[wrong] * (probability - 0.01) + 0.01
        captions.append(
            f"true: {hostile.classes[right]} predicted: {hostile.classes[wrong]}, {probability:.1%} "
            f"{photos[place].path}"
        )
    return probabilities, captions


@pytest.fixture(scope="module")
def page(
    hostile: Dataset,
    planted: tuple[dict[str, NDArray[Any]], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report(path, hostile, planted[0], fine_tune="block5", views=3)


def test_the_page_loads_no_other_file(page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value is not None and value.startswith(("data:", "#")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert re.findall(r"url\((?!#)|@import|https?://", page.html) == []
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.all("meta"))


def test_names_from_folders_are_escaped(page: Page, hostile: Dataset) -> None:
    for name in hostile.classes:
        assert name in page.text
    assert "<script>/<b>.txt is not a picture by its file name" in page.text
    assert not page.all("script") and "<script" not in page.html and page.html.count("<b>.txt") == 0


def test_the_most_confident_mistakes_come_first_with_a_picture(
    page: Page, hostile: Dataset, planted: tuple[dict[str, NDArray[Any]], list[str]]
) -> None:
    first, second = (page.text.index(caption) for caption in planted[1])
    assert first < second
    assert f"2 of {len(hostile.split('test'))} test photos were classified wrongly" in page.text
    pictures = page.all("img")
    assert len(pictures) == 2
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert kind == "data:image/jpeg" and image.size == (160, 160)
            assert np.asarray(image.convert("L")).std() > 5


def test_the_page_shows_metrics_settings_and_versions(page: Page, hostile: Dataset) -> None:
    test = len(hostile.split("test"))
    for text in (
        f"{(test - 2) / test:.1%} of {test} test photos are classified correctly",
        "25 November 2026, 19:45 UTC",
        "recipe pooled, fine-tuned from block5",
        "before 0.250",
        "6.2%",
        "--views 3 2",
        "--fine-tune block5 none",
        "cpu:0",
        f"1 of {[photo.label for photo in hostile.split('test')].count('<script>')} <script> were predicted",
        "Head, on the frozen base",
        "Fine-tuning from block5",
        "python 3.11",
    ):
        assert text in page.text, text
    assert "Not finished" not in page.text and "Near-duplicates" not in page.text


def test_the_page_is_accessible(page: Page) -> None:
    """On a screen reader, on a phone, and in a dark theme."""
    assert [tag for tag, _ in page.elements if tag in ("h1", "h2")][:2] == ["h1", "h2"]
    assert len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    charts = [svg["aria-label"] for svg in page.all("svg") if svg["role"] == "img"]
    assert len(charts) == len(page.all("svg")) == 5
    assert charts[0] is not None and charts[0].startswith("Reliability diagram.")
    assert "Loss of block5 over 6 epochs: train from 1.000 to 0.167; val from 0.900 to 0.900" in charts
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in page.all("meta")}
    assert "prefers-color-scheme: dark" in page.html and "var(--green)" in page.html
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {str(link["href"])[1:] for link in page.all("a")} <= targets
    assert len(targets) == sum("id" in attributes for _, attributes in page.elements), "ids are unique"


def cells(page: Page, label: str) -> Iterator[str]:
    """The text of each cell of the table with this label."""
    table = page.html.split(f'aria-label="{label}"', 1)[1].split("</table>", 1)[0]
    found = re.findall(r"<t[hd].*?</t[hd]>", table, re.S)
    return iter(re.sub(r"<[^>]+>", "", cell).strip() for cell in found)


def test_the_tables_count_photos_per_class_and_split(tmp_path: Path) -> None:
    dataset = made_up("abc", 30, 2, 4)
    dataset = replace(dataset, photos=dataset.photos[10:])  # a has 20 to train on
    probabilities = all_right(dataset)
    probabilities["test"][:3] = [0.2, 0.7, 0.1]  # three of four photos of a are predicted as b
    page = report(tmp_path / "report.html", dataset, probabilities)
    assert list(cells(page, "Confusion matrix, test")) == [
        *("true ↓ predicted →", "a", "b", "c"),
        *("a", "1", "3", "0"),
        *("b", "0", "4", "0"),
        *("c", "0", "0", "4"),
    ]
    assert list(cells(page, "Classes, test"))[5:] == [
        *("a", "4", "100.0%", "25.0%", "40.0%"),
        *("b", "4", "57.1%", "100.0%", "72.7%"),
        *("c", "4", "100.0%", "100.0%", "100.0%"),
    ]
    assert list(cells(page, "Photos of each class"))[4:] == [
        *("a", "20", "2", "4"),
        *("b", "30", "2", "4"),
        *("c", "30", "2", "4"),
    ]
    assert "The classes are balanced, with 20 to 30 training photos each." in page.text
    assert "3 of 4 a were predicted as b" in page.text
    assert page.text.count("no picture: no such file or directory") == 3, "photos that have been deleted"


def test_a_page_of_300_classes_stays_small(tmp_path: Path) -> None:
    dataset = made_up([f"Species number {number} of a genus" for number in range(300)], 3, 1, 2)
    left_out = tuple(LeftOut(f"notes/{number}.txt", "not a picture") for number in range(LISTED_FILES + 1150))
    probabilities = all_right(dataset)
    probabilities["test"] = np.roll(probabilities["test"], 1, axis=1)
    page = report(tmp_path / "report.html", replace(dataset, left_out=left_out), probabilities)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert "notes/99.txt" in page.text and "notes/100.txt" not in page.text
    assert "left_out.csv, beside this page, lists 1,150 more" in page.text
    assert "600 of 600 test photos were classified wrongly" in page.text
    assert page.text.count("predicted: ") == SHOWN_MISTAKES
    assert [image["class"] for image in page.all("img")] == ["heat", "heat"]
    assert "Classes, test: 300 rows" in page.text


@pytest.mark.parametrize("counts", [(5, 0, 3), (5, 3, 0), (5, 0, 0), (5, 1, 1), (1, 1, 1)])
def test_a_run_with_few_or_no_measured_photos_has_a_page(
    counts: tuple[int, int, int], tmp_path: Path
) -> None:
    dataset = made_up(("ورد", "薔薇"), *counts)
    page = report(tmp_path / "report.html", dataset, all_right(dataset), recipe="article", epochs=60)
    measured = {split: count for split, count in zip(("val", "test"), counts[1:], strict=True) if count}
    for split, count in measured.items():
        assert f"100.0% of {2 * count} {split} photos are classified correctly" in page.text
    if measured:
        assert f"All {2 * counts[1 + ('test' in measured)]} " in page.text
        assert "cannot answer “unknown”" in page.text
    assert ("the accuracy of this model is not known" in page.text) == (not measured)


def test_classes_without_test_photos_are_not_counted_as_right(tmp_path: Path) -> None:
    dataset = made_up("ab", 5, 1, 1)
    page = report(tmp_path / "report.html", dataset, all_right(dataset))
    assert "Every class has a recall of 100 %." in page.text and "no photo of them" not in page.text
    photos = tuple(photo for photo in dataset.photos if photo.path != "test/a/0.jpg")
    dataset = replace(dataset, photos=photos)
    page = report(tmp_path / "report.html", dataset, all_right(dataset))
    assert "Every measured class has a recall of 100 %. Not measured, because test has" in page.text
    assert "test has no photo of them: a." in page.text


@pytest.mark.parametrize(
    ("epochs", "reason"),
    [
        (0, "head was stopped after 0 of 60"),
        (1, "head was stopped after 1 of 60"),
        (62, "block5 was stopped after 2 of 6"),
    ],
)
def test_a_stopped_run_names_the_stage_and_its_epochs(epochs: int, reason: str, tmp_path: Path) -> None:
    dataset = made_up("ab", 3, 1, 1)
    page = report(tmp_path / "report.html", dataset, all_right(dataset), HISTORY[:epochs], fine_tune="block5")
    assert f"Not finished: {reason} epochs" in page.text


@pytest.mark.parametrize("discarded", [False, True])
def test_fine_tuning_that_was_discarded_has_no_best_epoch(discarded: bool, tmp_path: Path) -> None:
    dataset, path = made_up("ab", 3, 1, 1), tmp_path / "report.html"
    page = report(path, dataset, all_right(dataset), fine_tune="block5", discarded=discarded)
    assert path.read_text().count("best: epoch") == (2 if discarded else 4)
    assert ("not fine-tuned" in page.text) == discarded and (
        "fine-tuned from block5" in page.text
    ) != discarded
    assert ("weights from before it" in page.text) == discarded


def test_unbalanced_classes_and_synthetic_photos_are_mentioned(tmp_path: Path) -> None:
    dataset = made_up("ab", 9, 1, 1)
    dataset = replace(dataset, photos=dataset.photos[5:], synthetic=True)
    page = report(tmp_path / "report.html", dataset, all_right(dataset))
    assert "Photos of small classes had larger weights" in page.text
    assert "not balanced: b has 2.2 times the training photos of a." in page.text
    assert "Trained on generated pictures" in page.text
    page = report(tmp_path / "report.html", dataset, all_right(dataset), class_weight="none")
    assert "--class-weight balanced helps" in page.text


def test_the_photos_of_each_split_and_of_a_limit_are_described(tmp_path: Path) -> None:
    whole, part = made_up("ab", 9, 3, 3), made_up("ab", 9, 0, 0)
    text = report(tmp_path / "a.html", whole, all_right(whole)).text
    assert "its best epoch is chosen on val. test measures its accuracy." in text
    assert "No file: all files in the class folders were used." in text
    none = {"val": np.zeros((0, 2)), "test": np.zeros((0, 2))}
    text = report(tmp_path / "b.html", part, none, limit=9).text
    assert "its best epoch is chosen on train. There are no test photos." in text
    assert "can be used, and --limit 9 took a part of them." in text


@pytest.mark.parametrize(
    ("choice", "advice"),
    [("report", "drop removes one of each pair"), ("drop", "the photo in test was kept")],
)
def test_near_duplicates_are_listed_with_their_splits(choice: str, advice: str, tmp_path: Path) -> None:
    dataset = made_up("ab", 3, 1, 1)
    pair = Pair(dataset.split("train")[0], dataset.split("test")[1], 7)
    pairs = [pair] * (LISTED_FILES + 5)
    page = report(tmp_path / "report.html", dataset, all_right(dataset), pairs=pairs, near_duplicates=choice)
    assert "105 pairs of photos" in page.text and advice in page.text
    assert page.text.count("train train/a/0.jpg") == page.text.count("test test/b/0.jpg") == SHOWN_PAIRS
    assert page.text.count("train/a/0.jpg train test/b/0.jpg test") == LISTED_FILES - SHOWN_PAIRS
    assert "near_duplicates.csv, beside this page, lists 5 more" in page.text


def negatives_of(dataset: Dataset, folder: Path, known: Sequence[float]) -> Dataset:
    """The data set with test pictures of none of the classes, one for each value of `known`."""
    photos = []
    for number in range(len(known)):
        Image.new("RGB", (64, 64), (25 * number, 0, 0)).save(folder / f"<i>{number}.png")
        photos.append(Photo(f"{folder}/<i>{number}.png", NONE_LABEL, "test", f"{number}"))
    return replace(dataset, negatives=tuple(photos))


def test_named_pictures_of_none_of_the_classes_are_shown(tmp_path: Path) -> None:
    known = np.array([0.1, 0.6, 0.2, 0.97, 0.4, 0.0, 0.3, 0.1])
    dataset = negatives_of(made_up("ab", 3, 1, 1), tmp_path, known)
    probabilities = np.array([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 5)
    results = {"test": PictureOutputs(probabilities, known)}
    page = report(tmp_path / "report.html", dataset, all_right(dataset), negatives=results)
    low, high = confidence_interval(2, 8)
    assert "names 25.0% of 8 test photos of none of the classes as a class: 2." in page.text
    assert f"expect {low:.1%} to {high:.1%} (95 % confidence interval for 8 pictures)" in page.text
    assert list(cells(page, "Named pictures of none of the classes")) == [
        *("class", "named as this class", "share"),
        *("a", "1", "12.5%"),
        *("b", "1", "12.5%"),
    ]
    first, second = (
        page.text.index(text) for text in ("named: b, known 0.97 <i>3.png", "named: a, known 0.60 <i>1.png")
    )
    assert first < second and page.text.count("named: ") == 2 == len(page.all("img"))
    assert "default set" not in page.text and str(tmp_path) not in page.html


def test_pictures_of_the_default_set_are_named_as_such(tmp_path: Path, cache_home: Path) -> None:
    folder = default_negatives_folder() / "composited-1"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = negatives_of(made_up("ab", 3, 1, 1), folder, [0.0] * 4)
    results = {"test": PictureOutputs(np.full((4, 2), 0.5), np.zeros(4))}
    page = report(tmp_path / "report.html", dataset, all_right(dataset), negatives=results)
    assert "names 0.0% of 4 test pictures of none of the classes as a class: 0." in page.text
    assert "drawings of objects from the project's default set" in page.text
    assert "Named most clearly" not in page.text and not page.all("img")


def test_a_report_without_negatives_says_that_they_were_not_measured(tmp_path: Path) -> None:
    dataset = made_up("ab", 3, 1, 1)
    page = report(tmp_path / "report.html", dataset, all_right(dataset))
    assert "Not measured, because there are no test photos of none of the classes." in page.text


def test_a_near_duplicate_shows_both_photos(hostile: Dataset, tmp_path: Path) -> None:
    pairs = [Pair(hostile.photos[0], hostile.photos[1], 7)]
    page = report(tmp_path / "report.html", hostile, all_right(hostile), pairs=pairs)
    assert len(page.all("img")) == 2
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in page.all("img"))


def test_the_page_does_not_show_folders_of_this_machine(tmp_path: Path) -> None:
    photos, none = tmp_path / "photos", tmp_path / "scenes"
    for number, folder in enumerate((photos / "a", photos / "b", none / "empty")):
        folder.mkdir(parents=True)
        for shade in range(4):
            Image.new("RGB", (8, 8), (80 * number, 60 * shade, 0)).save(folder / f"{shade}.png")
    shutil.copy(none / "empty" / "0.png", none / "empty" / "copy.png")
    dataset = find_photos(photos, none=none, val_share=0.25, test_share=0.25)
    page = report(tmp_path / "report.html", dataset, all_right(dataset))
    assert "is the same photo as empty/0.png" in page.text
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("known", [False, True])
def test_only_a_model_that_answers_unknown_has_a_threshold(known: bool, tmp_path: Path) -> None:
    dataset = made_up("ab", 3, 1, 1)
    page = report(tmp_path / "report.html", dataset, all_right(dataset), known=known)
    assert ("the threshold for “unknown”" in page.text) == known


def test_the_heads_of_the_confusion_matrix_have_the_full_names_as_titles(tmp_path: Path) -> None:
    names = ("a" * 60, "b" * 60)
    dataset = made_up(names, 3, 1, 1)
    page = report(tmp_path / "report.html", dataset, all_right(dataset))
    titles = [(head["scope"], head["title"]) for head in page.all("th") if "title" in head]
    of_one_split = [("col", name) for name in names] + [("row", name) for name in names]
    assert titles == 2 * of_one_split


def test_a_file_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    dataset = made_up("ab", 3, 1, 1)
    left_out = (LeftOut("a/caf\udce9.txt", "not a picture"),)
    page = report(tmp_path / "report.html", replace(dataset, left_out=left_out), all_right(dataset))
    assert r"a/caf\udce9.txt" in page.text


def test_the_answers_for_added_photos_are_shown(hostile: Dataset, tmp_path: Path) -> None:
    taught = tmp_path / "device" / "taught"
    photos = tuple(
        Photo(f"{taught}/{label}/<i>{number}.jpg", label, "train", f"{label}{number}")
        for label in (hostile.classes[0], NONE_LABEL)
        for number in range(3)
    )
    for photo in photos:
        Path(photo.path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (0, 99, 0)).save(photo.path)
    dataset = replace(hostile, photos=hostile.photos + photos[:3], negatives=photos[3:], added_root=taught)
    outputs = PictureOutputs(np.eye(3)[[0, 1, 0, 2, 2, 2]], np.array([0.9, 0.9, 0.1, 0.2, 0.2, 0.8]))
    added = added_answers(dataset, outputs, {"known": 0.5})
    page = report(tmp_path / "report.html", dataset, all_right(dataset), added=added)
    assert "learned from 6 photos that --add gave, and now gives 3 of them the right answer" in page.text
    assert list(cells(page, "Added photos"))[4:] == [
        *(html.escape(hostile.classes[0], quote=True).replace("&#x27;", "&#39;"), "3", "1", "33.3%"),
        *("none", "3", "2", "66.7%"),
    ]
    assert len(page.all("img")) == 3
    for label, answer, path in (
        (hostile.classes[0], f"{hostile.classes[1]}, 100.0%", photos[1].path),
        (hostile.classes[0], "unknown", photos[2].path),
        (NONE_LABEL, f"{hostile.classes[2]}, 100.0%", photos[5].path),
    ):
        shown = Path(path).relative_to(tmp_path / "device")
        assert f"added as: {label} answer: {answer} {shown}" in page.text
    assert str(tmp_path) not in page.html


def test_suspect_labels_and_the_learning_curve_are_shown(hostile: Dataset, tmp_path: Path) -> None:
    photos = hostile.split("train")
    suspects = [
        SuspectLabel(photos[0], hostile.classes[1], 0.02, 0.96, True),
        SuspectLabel(photos[1], hostile.classes[2], 0.45, 0.5, False),
    ]
    points = [LearningPoint(8 * 2**number, 0.7 + 0.05 * number, (0.6, 0.9)) for number in range(4)]
    curve = LearningCurve(points, 0.021, (0.004, 0.037))
    page = report(tmp_path / "report.html", hostile, all_right(hostile), suspects=suspects, curve=curve)
    assert f"1 of {len(photos)} training photos may have a wrong label" in page.text
    assert "lists them and, after them, the photos with weaker signs: 1." in page.text
    caption = f"label: {photos[0].label}, 2.0% looks like: {hostile.classes[1]}, 96.0% {photos[0].path}"
    assert caption in page.text
    assert len(page.all("img")) == 1 and "#labels" in {link["href"] for link in page.all("a")}
    assert "twice as many training photos would add about 2.1 points (95 % interval 0.4 to 3.7)" in page.text
    assert list(cells(page, "Accuracy by number of training photos"))[3:6] == ["8", "70.0%", "60.0% to 90.0%"]
    none = report(tmp_path / "none.html", hostile, all_right(hostile), suspects=[])
    assert "No label" not in none.text
    assert f"{len(photos)} training photos were not checked" in none.text
    copies = tuple(replace(photo, path=f"{number}/{photo.path}") for photo in photos for number in range(8))
    assert judged_labels(copies) == {*hostile.classes} and judged_labels(copies[:12]) == set()
    assert "Not estimated, because a class has fewer than 16 training photos" in none.text
    unsearched = report(tmp_path / "unsearched.html", hostile, all_right(hostile))
    assert "Suspect labels" not in unsearched.text and "Would more photos help" not in unsearched.text
