"""INF-05, INF-07, INF-09: a lost device is replaced, the same input gives the same bytes, jobs leave nothing behind."""

from __future__ import annotations

import gc
import hashlib
import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from own_memory import own_bytes

from pacs_ai.built_in_profiles import BUILT_IN
from pacs_ai.config import Config
from pacs_ai.infer import worker
from pacs_ai.infer.child import Bench
from pacs_ai.infer.order import Done, Order
from pacs_ai.models.engine import tiling
from pacs_ai.models.engine.windows import Runner, slabs
from pacs_ai.profiles import Kind, encodings, plan
from pacs_ai.testing import Phantom, write_phantom

if TYPE_CHECKING:
    from pathlib import Path

#: Jobs after which memory no longer grows by what is made once.
WARM = 15


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    lesions = {"name": "lesions", "use": "testing-bright-lesion"}
    return Config.model_validate({"store": {"folder": str(tmp_path_factory.mktemp("store"))}, "pipeline": [lesions]})


def order(folder: Path, profile: str, *kinds: Kind) -> Order:
    """Return a job on a small series; of the profile's objects those of some kinds, or all."""
    paths = write_phantom(folder / "series", Phantom(slices=4, rows=32, columns=32))
    wanted = encodings([plan(BUILT_IN[profile], 9001)])
    return Order(
        job_id=1,
        job_key="0" * 64,
        generation=0,
        created_at=datetime(2020, 1, 1, tzinfo=UTC),
        pipeline="lesions",
        model_digest="",
        settings_digest="",
        inputs={"image": tuple((path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)},
        unverified=(),
        predecessors=(),
        encodings=tuple(one for one in wanted if not kinds or one.kind in kinds),
        node_name="node",
        output=folder / "out",
    )


def tracked() -> int:
    gc.collect()
    return len(gc.get_objects())


class Repeated:
    """One job done again and again by the bench of a worker's child process."""

    def __init__(self, settings: Config, given: Order) -> None:
        self._bench, self._given = Bench(settings, "cpu"), given
        self.digests: set[tuple[str, ...]] = set()

    def do(self, times: int) -> None:
        for _ in range(times):
            answer = self._bench.serve(self._given, SimpleNamespace(send=lambda message: None))
            assert isinstance(answer, Done), answer
            self.digests.add(tuple(hashlib.sha256(one.path.read_bytes()).hexdigest() for one in answer.files))


def test_INF_07_one_hundred_times_the_same_bytes_and_nothing_left_behind(settings, tmp_path):
    repeated = Repeated(settings, order(tmp_path, "ohif", Kind.SEGMENTATION))
    repeated.do(WARM)
    objects, memory = tracked(), own_bytes()
    repeated.do(100 - WARM)
    assert len(repeated.digests) == 1
    assert tracked() - objects < (100 - WARM) // 4, "not one object in four jobs may stay"
    assert own_bytes() - memory < 2_000_000


@pytest.mark.nightly
def test_one_hundred_times_the_same_bytes_of_every_object(settings, tmp_path):
    repeated = Repeated(settings, order(tmp_path, "archive"))
    repeated.do(100)
    (digests,) = repeated.digests
    assert len(digests) > 5


def growth(settings: Config, given: Order, jobs: int) -> float:
    """Return by which part of the memory a process grows with every 1,000 jobs, after a tenth of them."""
    repeated = Repeated(settings, given)
    repeated.do(jobs // 10)
    before = own_bytes()
    repeated.do(jobs - jobs // 10)
    assert len(repeated.digests) == 1
    return (own_bytes() - before) / before / ((jobs - jobs // 10) / 1000)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_INF_09_ten_thousand_jobs_grow_by_less_than_a_hundredth_each_thousand(settings, tmp_path):
    assert growth(settings, order(tmp_path, "ohif", Kind.SEGMENTATION), 10_000) < 0.01


class Net(torch.nn.Module):
    """Two convolutions of three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 3, padding=1)
        )

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.layers(windows)


def predicted(image: torch.Tensor, starts: tuple[tuple[int, ...], ...], batch: int) -> torch.Tensor:
    tiles = tiling.Tiling(tuple(image.shape[1:]), (16, 16, 16), starts)
    runner = Runner([Net().eval()], torch.device("cpu"), "fp32", batch)
    weight = tiling.gaussian(tiles.window, (0.125,) * 3)
    return torch.cat([planes.clone() for _, planes in slabs(image, runner, tiles, weight)], 1)


@pytest.mark.parametrize("batch", [1, 5])
def test_INF_07_windows_in_another_order_give_the_same_labels(batch):
    """Sums of floats depend on their order, in the last digits: labels do not (Dice 1.0, 1e-5 on the values)."""
    image = torch.rand(1, 24, 32, 32, generator=torch.Generator().manual_seed(1))
    down, *across = tiling.even(image.shape[1:], (16, 16, 16), (0.5,) * 3).starts
    usual = predicted(image, (down, *across), 1)
    other = predicted(image, (down, *(axis[::-1] for axis in across)), batch)
    assert torch.allclose(other, usual, atol=1e-5, rtol=0)
    best = usual.topk(2, dim=0).values
    clear = best[0] - best[1] > 2e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(other.argmax(0)[clear], usual.argmax(0)[clear])
    assert torch.equal(predicted(image, (down, *across), 1), usual)


@pytest.mark.parametrize(
    ("error", "device", "policy"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "cuda:0", "crash"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "cuda:0", "crash"),
        (torch.AcceleratorError("device lost"), "cuda:0", "crash"),
        (RuntimeError("shapes do not fit"), "cuda:0", "failed"),
        (RuntimeError("CUDA error: no kernel image is available"), "cpu", "failed"),
    ],
)
def test_INF_05_a_gpu_that_failed_is_a_crash_which_replaces_the_process(
    settings, tmp_path, monkeypatch, error, device, policy
):
    """INF-05: what a process of a lost device computes afterwards would fail as well."""

    def run(_):
        raise error

    bench = Bench(settings, "cpu")
    monkeypatch.setattr(bench, "device", device)
    monkeypatch.setattr(bench, "pipeline", lambda _: SimpleNamespace(run=run))
    answer = bench.serve(order(tmp_path, "ohif"), SimpleNamespace(send=lambda message: None))
    assert answer.policy == policy
    assert ("the device cuda:0 failed" in answer.words) == (policy == "crash")


def test_INF_09_PRI_05_a_process_is_replaced_after_its_share_of_jobs(settings, monkeypatch):
    made = []

    class Stand:
        def __init__(self, *_) -> None:
            self.orders, self.ended = 0, False
            made.append(self)

        def end(self) -> None:
            self.ended = True

    monkeypatch.setattr(worker, "Bench", Stand)
    config = settings.model_copy(update={"infer": settings.infer.model_copy(update={"jobs_per_process": 3})})
    tried = worker.Worker(config, None, None, "host:1:2:infer", "cpu", threading.Event())
    tried._replace()
    for orders, benches in ((2, 1), (3, 2)):
        made[0].orders = orders
        tried._renew()
        assert len(made) == benches
    assert (made[0].ended, made[1].ended) == (True, False)
