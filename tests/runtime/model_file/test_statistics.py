"""Statistics survive their file, and whatever is not a file of theirs is rejected in one line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract, GoldenAnswer
from runtime.model_file.formats import read_contract, read_statistics_bytes
from runtime.model_file.loader import open_model
from runtime.model_file.statistics import ModelStatistics, fit_statistics
from tests.runtime.conftest import CONTRACT

CLASSES, FEATURES, FACTORS, POSITIVES = 3, 20, 4, 9


def make_statistics(seed: int = 0) -> ModelStatistics:
    random = np.random.default_rng(seed)
    labels = np.arange(300) % CLASSES
    means = random.uniform(0, 2, (CLASSES, FEATURES))
    mixing = random.normal(size=(FACTORS, FEATURES))
    features = means[labels] + random.normal(size=(300, FACTORS)) @ mixing
    features += 0.1 * random.normal(size=features.shape)
    examples = slice(0, POSITIVES)
    known = random.uniform(0.5, 1, POSITIVES)
    return fit_statistics(features, labels, features[examples], labels[examples], known, FACTORS)


STATISTICS = make_statistics()
DATA = STATISTICS.to_bytes()


def equal(one: ModelStatistics, other: ModelStatistics) -> bool:
    return all(np.array_equal(array, getattr(other, name)) for name, array in vars(one).items())


def test_statistics_survive_writing_and_reading() -> None:
    read = ModelStatistics.from_bytes(DATA)
    assert equal(read, STATISTICS) and read.to_bytes() == DATA
    assert all(array.dtype == getattr(STATISTICS, name).dtype for name, array in vars(read).items())


def test_safetensors_reads_the_same_arrays() -> None:
    arrays = safetensors.numpy.load(DATA)
    assert arrays.keys() == vars(STATISTICS).keys()
    assert equal(ModelStatistics(**arrays), STATISTICS)
    assert equal(ModelStatistics.from_bytes(safetensors.numpy.save(vars(STATISTICS))), STATISTICS)


def test_fitted_statistics_describe_the_features() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(3000) % CLASSES
    mixing = generator.normal(size=(FACTORS, FEATURES))
    features = labels[:, np.newaxis] + generator.normal(size=(3000, FACTORS)) @ mixing
    features += 0.3 * generator.normal(size=features.shape)
    known = np.full(POSITIVES, 0.75)
    fitted = fit_statistics(features, labels, features[:POSITIVES], labels[:POSITIVES], known, FACTORS)
    assert np.allclose(fitted.means, np.arange(CLASSES)[:, np.newaxis], atol=0.2)
    factors = fitted.factors.astype(np.float64)
    covariance = factors.T @ factors + np.diag(fitted.residual_variances)
    expected = mixing.T @ mixing + 0.09 * np.eye(FEATURES)
    assert np.linalg.norm(covariance - expected) < 0.1 * np.linalg.norm(expected)
    error = np.abs(fitted.positive_features - features[:POSITIVES])
    assert (error <= 0.51 * fitted.step.astype(np.float32) + 0.01).all()
    assert fitted.positive_labels.tolist() == labels[:POSITIVES].tolist()


def test_a_constant_feature_stays_constant() -> None:
    features = np.array([[0.0, 3.0], [1.0, 3.0], [2.0, 3.0], [3.0, 3.0]])
    labels = np.array([0, 0, 1, 1])
    fitted = fit_statistics(features, labels, features, labels, np.ones(4))
    assert np.allclose(fitted.positive_features, features, atol=0.01)


def test_features_beyond_float16_are_refused() -> None:
    features = np.array([[0.0, 1e6], [1.0, 0.0], [2.0, 1.0], [3.0, 1.0]])
    labels = np.array([0, 0, 1, 1])
    with pytest.raises(ModelError, match="damaged"):
        fit_statistics(features, labels, features, labels, np.ones(4))


def test_statistics_of_a_real_size_take_under_220_kb() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(200, 1200)), np.arange(200) % 5
    fitted = fit_statistics(features, labels, features[:100], labels[:100], np.ones(100))
    assert len(fitted.to_bytes()) < 220_000


def rewritten(change: Callable[[dict[str, Any]], None]) -> bytes:
    """DATA with a changed header."""
    length = int.from_bytes(DATA[:8], "little")
    header = json.loads(DATA[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + DATA[8 + length :]


def with_values(**arrays: Any) -> bytes:
    """The bytes of statistics that to_bytes would refuse."""
    return safetensors.numpy.save({**vars(STATISTICS), **arrays})


NAN = np.full((CLASSES, FEATURES), np.nan, np.float16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the header"),
        (DATA[:7], "the header"),
        (DATA[:100], "the header"),
        (b"\xff" * 8 + DATA[8:], "the header"),
        (DATA[:-1], "positives"),
        (bytes(2**24 + 1), "over 16,777,216 bytes"),
        ((10).to_bytes(8, "little") + b"[" * 10, "the header"),
        (rewritten(lambda header: header.pop("means")), "means"),
        (rewritten(lambda header: header.update(means=[])), "means"),
        (rewritten(lambda header: header["means"].update(dtype="F32")), "means"),
        (rewritten(lambda header: header["means"].update(shape=[CLASSES * FEATURES])), "means"),
        (rewritten(lambda header: header["means"].update(shape=[FEATURES, CLASSES])), "variances"),
        (rewritten(lambda header: header["means"].update(shape=[-CLASSES, -FEATURES])), "means"),
        (rewritten(lambda header: header["means"].update(shape=[True, FEATURES])), "means"),
        (rewritten(lambda header: header["means"].update(data_offsets=[0])), "means"),
        (rewritten(lambda header: header["means"].update(data_offsets=[-120, 0])), "means"),
        (rewritten(lambda header: header["means"].update(data_offsets=[10**30, 10**30 + 120])), "means"),
        (rewritten(lambda header: header["factors"].update(shape=[17, FEATURES])), "factors"),
        (with_values(means=NAN), "means"),
        (with_values(variances=np.full(FEATURES, -1, np.float16)), "variances"),
        (with_values(step=np.full(FEATURES, -1, np.float16)), "step"),
        (with_values(positive_labels=np.full(POSITIVES, CLASSES, np.uint16)), "positive_labels"),
        (with_values(positive_known=np.full(POSITIVES, 1.5, np.float32)), "positive_known"),
    ],
)
def test_damaged_statistics_are_rejected_with_the_array(data: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        ModelStatistics.from_bytes(data)
    assert "\n" not in str(caught.value)


def test_the_header_has_a_limit() -> None:
    """A parser of JSON takes many times the memory of its text."""
    length = int.from_bytes(DATA[:8], "little")

    def padded(size: int) -> bytes:
        return size.to_bytes(8, "little") + DATA[8 : 8 + length].ljust(size) + DATA[8 + length :]

    assert equal(ModelStatistics.from_bytes(padded(2**14)), STATISTICS)
    with pytest.raises(ModelError, match="the header"):
        ModelStatistics.from_bytes(padded(2**14 + 1))


def test_mutated_statistics_are_rejected_or_valid() -> None:
    generator, rejected = random.Random(0), 0
    header = int.from_bytes(DATA[:8], "little") + 8
    for _ in range(3000):
        data = bytearray(DATA)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(header if generator.random() < 0.8 else len(data))] = (
                generator.randrange(256)
            )
        try:
            ModelStatistics.from_bytes(bytes(data)).to_bytes()
        except ModelError:
            rejected += 1
    assert 1000 < rejected < 3000


def in_tflite(contract: Contract, statistics: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    zipped = io.BytesIO(b"\0\0\0\0TFL3")
    with zipfile.ZipFile(zipped, "a", method) as archive:
        archive.writestr("statistics.safetensors", statistics)
        archive.writestr(zipfile.ZipInfo("contract.json"), contract.to_json())
    return zipped.getvalue()


def in_onnx(contract: Contract, statistics: str) -> bytes:
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, {"contract.json": contract.to_json(), "statistics": statistics})
    return bytes(model.SerializeToString())


def version_2(statistics: bytes = DATA, features: int = FEATURES) -> Contract:
    return replace(
        CONTRACT,
        version=2,
        features=features,
        release=1,
        golden=GoldenAnswer((1.0, 0.0, 0.0), None),
        statistics_sha256=hashlib.sha256(statistics).hexdigest() if statistics else "",
    )


def model_bytes(format: str, contract: Contract, statistics: bytes) -> bytes:
    if format == "tflite":
        return in_tflite(contract, statistics)
    return in_onnx(contract, base64.b64encode(statistics).decode())


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_a_model_file_returns_its_statistics(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{format}"
    path.write_bytes(model_bytes(format, version_2(), DATA))
    model = open_model(path)
    assert equal(model.read_statistics(), STATISTICS)
    assert model.contract.model_id == hashlib.sha256(version_2().to_json().encode()).hexdigest()


@pytest.mark.parametrize("format", ["tflite", "onnx"])
@pytest.mark.parametrize(
    ("contract", "statistics", "reason"),
    [
        (CONTRACT, DATA, "holds no statistics of its features"),
        (version_2(b""), DATA, "holds no statistics of its features"),
        (version_2(), make_statistics(1).to_bytes(), "differ from their sha256"),
        (version_2(features=21), DATA, r"are of \[3, 20\] classes and features, its contract says \[3, 21\]"),
        (version_2(b"x"), b"x", "damaged"),
    ],
)
def test_other_statistics_are_rejected_where_they_are_used(
    format: str, contract: Contract, statistics: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{format}"
    path.write_bytes(model_bytes(format, contract, statistics))
    model = open_model(path)
    with pytest.raises(ModelError, match=rf"model\.{format}: .*{reason}") as caught:
        model.read_statistics()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_a_file_without_the_entry_is_rejected(format: str) -> None:
    data = {
        "tflite": in_tflite(CONTRACT, b"").replace(b"statistics.s", b"statistics.x"),
        "onnx": in_onnx(CONTRACT, "").replace(b"statistics", b"statisticx"),
    }
    with pytest.raises(ModelError, match="holds no statistics"):
        read_statistics_bytes(data[format], format)


def test_statistics_that_are_compressed_large_or_not_base64_are_rejected() -> None:
    with pytest.raises(ModelError, match="is compressed"):
        read_statistics_bytes(in_tflite(CONTRACT, DATA, zipfile.ZIP_DEFLATED), "tflite")
    with pytest.raises(ModelError, match="over 16,777,216 bytes"):
        read_statistics_bytes(in_tflite(CONTRACT, bytes(2**24 + 1)), "tflite")
    with pytest.raises(ModelError, match=r"over 22,\d+,\d+ bytes"):
        read_statistics_bytes(in_onnx(CONTRACT, "A" * (2**24 * 4 // 3 + 5)), "onnx")
    for text in ("A", "AAA=A", "ä"):
        with pytest.raises(ModelError, match="not base64"):
            read_statistics_bytes(in_onnx(CONTRACT, text), "onnx")


def test_the_contract_is_read_behind_large_statistics() -> None:
    data = in_tflite(version_2(), bytes(2**24))
    assert len(read_statistics_bytes(data, "tflite")) == 2**24
    assert read_contract(data, "tflite") == version_2()


def test_a_classifier_does_not_import_the_statistics() -> None:
    code = "import sys, runtime.inference.classifier; print('runtime.model_file.statistics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
