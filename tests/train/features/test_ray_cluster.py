"""Two nodes of a real Ray cluster on this machine, with the bundled base on drawn pictures."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.common.errors import UserError
from tests.helpers import PATIENCE, wait_for
from train.__main__ import main
from train.data.dataset import Dataset
from train.data.find_photos import find_photos
from train.data.synthetic import draw_flowers
from train.features import ray_address, ray_task
from train.features.extraction import extract
from train.features.ray_address import RAY_SETTINGS, check_ray_address
from train.features.ray_cluster import RayCluster, connect_to_ray
from train.network.vgg import Weights, read_weights

ray = pytest.importorskip("ray")


@dataclass(frozen=True)
class TwoNodes:
    driver: RayCluster
    nodes: Any
    second: Any


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token would be written into the user's home
        patch.setenv("RAY_PROFILING", "1")  # it counts the attempts
        patch.setenv("RAY_task_events_report_interval_ms", "100")
        for name, value in RAY_SETTINGS.items():
            patch.setenv(name, value)
        room = {"num_cpus": 1, "object_store_memory": 200_000_000}
        head = {"include_dashboard": False, "_system_config": {"health_check_period_ms": 500}, **room}
        nodes = Nodes(initialize_head=True, head_node_args=head)
        try:
            second = nodes.add_node(**room)
            check_ray_address(nodes.address)
            with connect_to_ray(nodes.address) as found:
                # Small batches, so that few pictures make many shards.
                yield TwoNodes(replace(found, devices=replace(found.devices, batch=4)), nodes, second)
        finally:
            nodes.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty drawn pictures and one that is cut off."""
    root = draw_flowers(tmp_path_factory.mktemp("cluster") / "photos", 6)
    whole = (root / "roses" / "roses-000.jpg").read_bytes()
    (root / "roses" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def weights() -> Weights:
    """VGG16's, because a small base would finish before Ray notices a killed node."""
    return read_weights()


@pytest.fixture(scope="module")
def single(
    two_nodes: TwoNodes, photos: Path, weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Dataset]:
    """The cache and the data set that this machine alone makes of them."""
    cache = tmp_path_factory.mktemp("single")
    devices = two_nodes.driver.devices
    return cache, extract(find_photos(photos), weights, cache, views=1, devices=devices).dataset


@pytest.mark.slow
def test_photos_that_a_worker_does_not_have_are_sent(
    two_nodes: TwoNodes,
    photos: Path,
    weights: Weights,
    single: tuple[Path, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path from the working directory leads nowhere on a worker, whose working directory is another."""
    dataset = find_photos(photos, limit=4)
    gone = dataset.split("val")[0]
    dataset = replace(dataset, root=Path("photos"))
    kept = (photos / gone.path).read_bytes()
    monkeypatch.chdir(photos.parent)
    try:
        (photos / gone.path).unlink()
        found = extract(dataset, weights, tmp_path, views=1, cluster=two_nodes.driver).dataset
    finally:
        (photos / gone.path).write_bytes(kept)
    reasons = {item.path: item.reason for item in found.left_out}
    assert reasons.pop(gone.path) == "no such file or directory"
    assert reasons.items() <= {item.path: item.reason for item in single[1].left_out}.items()
    computed, alone = features(tmp_path), features(single[0])
    assert len(computed) == len(found.photos) >= 18
    for name, file in computed.items():
        assert_same(file, alone[name])


@pytest.mark.slow
def test_a_worker_with_other_versions_raises_cluster_error(
    two_nodes: TwoNodes, photos: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray_task.package_versions()
    monkeypatch.setattr(ray_task, "package_versions", lambda: here | {"keras": "2.15.0"})
    with pytest.raises(
        UserError, match=rf"has keras {here['keras']}, not 2.15.0; features would differ"
    ) as raised:
        extract(find_photos(photos, limit=2), weights, tmp_path, views=1, cluster=two_nodes.driver)
    assert "\n" not in str(raised.value)
    assert not features(tmp_path)


@pytest.mark.slow
def test_an_error_in_a_worker_raises_cluster_error(
    two_nodes: TwoNodes, photos: Path, weights: Weights
) -> None:
    jobs = [(photo, [0]) for photo in find_photos(photos, limit=2).photos]
    with pytest.raises(UserError, match=r"a worker: ValueError: .*; run without --ray") as raised:
        list(two_nodes.driver.extract_batches(photos, jobs, weights, "block9_pool"))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_killed_node_costs_only_its_running_shard(
    two_nodes: TwoNodes,
    photos: Path,
    weights: Weights,
    single: tuple[Path, Dataset],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def kill() -> None:
        while len(features(tmp_path)) < 6:
            time.sleep(0.05)
        at_kill.update({name: file.stat().st_mtime_ns for name, file in features(tmp_path).items()})
        two_nodes.nodes.remove_node(two_nodes.second, allow_graceful=False)

    at_kill: dict[str, int] = {}
    started = time.time()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = extract(find_photos(photos), weights, tmp_path, views=1, cluster=two_nodes.driver)
    killer.join(PATIENCE)
    assert 6 <= len(at_kill) <= 24, "it was killed midway"

    computed, alone = features(tmp_path), features(single[0])
    assert list(computed) == list(alone), "the same keys"
    for name, file in computed.items():
        assert_same(file, alone[name])
    for split in ("train", "val", "test"):
        order = [file.relative_to(tmp_path) for file in found.of(split)[0].files]
        again = extract(single[1], weights, single[0], views=1, devices=two_nodes.driver.devices).of(split)
        assert order == [file.relative_to(single[0]) for file in again[0].files]
    assert found.dataset.left_out == single[1].left_out
    # The shard at hand was run again, and what was done before stood as it was.
    assert at_kill.items() <= {name: file.stat().st_mtime_ns for name, file in computed.items()}.items()
    wait_for(lambda: len(set(finished(started))) == 8)  # Ray notes runs late
    runs = Counter(finished(started))
    assert runs.total() <= 9, "at most one was done whose result was on the node still"
    printed = capfd.readouterr().err
    assert printed.count("a node died;") == 1
    assert printed.count("a worker died;") <= 2
    assert "core_worker" not in printed, "Ray printed its own log"


def finished(since: float) -> list[str]:
    """The task of every run of a shard that began after `since`, in seconds, and came to its end.

    Ray notes runs of an earlier test late.
    """
    runs = [event for event in ray.timeline() if event["cat"] == "task::extract_shard"]
    return [event["args"]["task_id"] for event in runs if event["ts"] >= 1e6 * since]


def features(cache: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(cache.rglob("[!.]*.npy"))}


def assert_same(found: Path, expected: Path) -> None:
    """To two steps of float16: a node's one core adds up in another order than all of this machine's."""
    np.testing.assert_allclose(np.load(found), np.load(expected), rtol=2e-3, atol=1e-3)


def test_a_closed_port_ends_train_with_exit_code_2(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 2 * PATIENCE)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    started = time.monotonic()
    assert main([str(photos), "--out", str(tmp_path / "run"), "--ray", f"127.0.0.1:{port}"]) == 2
    assert time.monotonic() - started < PATIENCE
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: --ray 127.0.0.1:{port}: ") and err.count("\n") == 1
    assert "Connection refused" in err and "ray start --head" in err


def test_a_server_that_is_not_ray_raises_cluster_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(UserError, match="no answer in 1 s"):
            check_ray_address(address)


@pytest.mark.parametrize("address", ["cluster", "ray://head:10001", "head:port", ":6379"])
def test_a_malformed_address_raises_cluster_error(address: str) -> None:
    with pytest.raises(UserError, match="give HOST:PORT"):
        check_ray_address(address)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"in the clone, run pip install '\.\[ray\]'"):
        check_ray_address("local")
