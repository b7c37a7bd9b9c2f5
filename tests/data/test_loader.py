"""The stream of batches does not depend on who makes it, and workers fail loudly, quickly and completely."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.conftest import Make
from seqtrack.data import loader as loader_module
from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import open_source
from seqtrack.errors import Problem, RunError, UserError

SPEC = SampleSpec(template_size=16, search_size=32, num_templates=2)
SAMPLES, GLOBAL_BATCH = 22, 5
TENSORS = ("templates", "search", "template_brightness", "search_brightness", "boxes", "indices")
MakeLoader = Callable[..., BatchLoader]


@pytest.fixture
def dataset(make_lasot: Make) -> TrackingDataset:
    source = open_source("lasot", make_lasot("book-1", "coin-1"), classes=(), split="train")
    return TrackingDataset([source], [1.0], SPEC, seed=5)


@pytest.fixture
def make(dataset: TrackingDataset) -> Iterator[MakeLoader]:
    """Loaders that are closed after the test."""
    made: list[BatchLoader] = []

    def loader(workers: int = 0, **options: int) -> BatchLoader:
        numbers = {"batch_size_global": GLOBAL_BATCH, "samples_per_epoch": SAMPLES, **options}
        made.append(BatchLoader(dataset, num_workers=workers, **numbers))  # type: ignore[arg-type]
        return made[-1]

    yield loader
    for one in made:
        one.close()


def _stream(loader: BatchLoader, epoch: int, start: int = 0) -> list[list[bytes]]:
    return [[getattr(one, name).numpy().tobytes() for name in TENSORS] for one in loader.batches(epoch, start)]


def test_a_batch_holds_its_samples(dataset: TrackingDataset, make: MakeLoader) -> None:
    batches = list(make().batches(2))
    assert [batch.count for batch in batches] == [batch.global_count for batch in batches] == [5, 5, 5, 5, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(SAMPLES))
    batch = batches[1]
    assert batch.templates.shape == (5, 2, 3, 16, 16) and batch.search.shape == (5, 3, 32, 32)
    assert [getattr(batch, name).dtype for name in TENSORS] == 2 * [torch.uint8] + 3 * [torch.float32] + [torch.int64]
    for place, index in enumerate(batch.indices.tolist()):
        sample = dataset.sample(2, index)
        for name, value in {**vars(sample), "boxes": sample.box}.items():
            if name in TENSORS:
                np.testing.assert_array_equal(getattr(batch, name)[place], value)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_bytes_from_any_start(make: MakeLoader, workers: int) -> None:
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    plain, loader = make(), make(workers)
    whole = [_stream(plain, epoch) for epoch in (0, 1)]
    loader.start_workers()
    started = _workers()
    assert len(started) == workers
    assert [_stream(loader, epoch) for epoch in (0, 1)] == whole and whole[0] != whole[1]
    for start in range(6):
        assert _stream(loader, 1, start) == whole[1][start:]
        next(loader.batches(0))  # an epoch that is abandoned
    assert _workers() == started
    loader.close()
    assert _workers() == []
    assert torch.equal(torch.random.get_rng_state(), torch_before), "global random states are not touched"
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.parametrize(("world_size", "shards"), [(2, 0), (4, 0), (3, 4)])
def test_the_samples_of_all_ranks_are_the_global_batches(make: MakeLoader, world_size: int, shards: int) -> None:
    whole = list(make().batches(3))
    by_rank = [list(make(world_size=world_size, rank=rank, shards=shards).batches(3)) for rank in range(world_size)]
    for step, expected in enumerate(whole):
        parts = [batches[step] for batches in by_rank]
        assert sum(part.count for part in parts) == expected.count == parts[0].global_count
        for name in TENSORS:
            joined = torch.cat([getattr(part, name)[: part.count] for part in parts])
            assert torch.equal(joined, getattr(expected, name)), name
        assert sum(part.checksum for part in parts) % 2**64 == expected.checksum
    if world_size == 4:  # two samples for four ranks: a placeholder
        assert (parts[3].count, len(parts[3].indices), parts[3].global_count) == (0, 1, 2)


def _workers() -> list[int]:
    return sorted(child.pid or 0 for child in multiprocessing.active_children())


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_gone(processes: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (gone := all(map(_is_gone, processes))) and time.monotonic() < end:
        time.sleep(0.02)
    return gone


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_killed_worker_becomes_an_error_and_the_loader_can_be_used_again(make: MakeLoader, is_idle: bool) -> None:
    long = {"samples_per_epoch": 20 * GLOBAL_BATCH}  # many more batches than the workers make in advance
    loader = make(2, **long)
    loader.start_workers()
    batches = loader.batches(0)
    if not is_idle:
        next(batches)
    victim = _workers()[0]
    os.kill(victim, signal.SIGKILL)
    assert _wait_gone([victim], 5), "nothing is raised into this process until the worker's batch is needed"
    with pytest.raises(RunError, match="SIGKILL") as caught:
        list(batches)
    assert caught.value.code == "loader.worker_died"
    assert not multiprocessing.active_children(), "the other worker was ended as well"
    assert _stream(loader, 0) == _stream(make(**long), 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "0001.jpg"), "limits.open_files"),
        (MemoryError(), "limits.memory"),
        (ZeroDivisionError("by zero in worker"), "loader.worker_failed"),
        (UserError([Problem("0001.jpg: damaged", "data.frame"), Problem("two", "x.y")]), "data.frame"),
    ],
)
def test_a_workers_error_arrives_with_the_workers_traceback_as_its_cause(
    dataset: TrackingDataset, make: MakeLoader, error: Exception, code: str
) -> None:
    class Broken(TrackingDataset):
        """Fails at one sample, as a bug or a missing resource would make it."""

        def sample(self, epoch: int, index: int):  # type: ignore[no-untyped-def]
            if index == 7:
                raise error
            return super().sample(epoch, index)

    dataset.__class__ = Broken
    with pytest.raises(UserError if isinstance(error, UserError) else RunError) as caught:
        list(make(2).batches(0))
    assert caught.value.code == code
    assert (str(error) or type(error).__name__) in str(caught.value) and "Traceback" not in str(caught.value)
    assert "in sample" in str(caught.value.__cause__)
    assert _wait_gone(_workers(), 5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_request_to_stop_ends_the_wait_for_a_hanging_worker(
    make: MakeLoader, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make(1, world_size=world_size, samples_per_epoch=4000)
    is_stopping = world_size == 2  # then the others wait for this rank's batch: none that comes in time is dropped
    batches = loader.batches(0, stop=lambda: is_stopping)
    assert [int(next(batches).indices[0]) for _ in range(3)] == [0, 5, 10]
    (worker,) = _workers()
    os.kill(worker, signal.SIGSTOP)
    is_stopping = True
    monkeypatch.setattr(loader_module, "_STOP_PATIENCE_S", 0.5)
    assert len(list(batches)) <= 2, "only batches that were finished before"
    loader.close()
    assert _wait_gone([worker], 5)


def _ignores(pid: int, number: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (number - 1) & 1)


def test_workers_leave_signals_to_the_parent_and_die_with_it(make: MakeLoader) -> None:
    """`docker stop` may signal the whole group: the workers must continue while the trainer saves."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        for _ in make(2, samples_per_epoch=10**6).batches(0):
            os.write(theirs, b".")
        os._exit(0)
    try:
        assert os.read(ours, 1) == b"."
        workers = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert len(workers) == 2
        while not all(_ignores(worker, signal.SIGTERM) for worker in workers):  # one may not have begun yet
            time.sleep(0.01)
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        assert all(os.read(ours, 1) == b"." for _ in range(60)) and not any(_is_gone(worker) for worker in workers)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    # Without the kernel's parent-death signal they would notice within seconds, and hold memory until then.
    assert _wait_gone(workers, 2)


def test_open_files_do_not_grow_with_the_batches(make: MakeLoader) -> None:
    """A limit that is too low: tests/faults."""
    loader, counts = make(2, samples_per_epoch=40 * GLOBAL_BATCH), []
    for _ in loader.batches(0):
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(counts) == 40 and max(counts) == counts[0]
