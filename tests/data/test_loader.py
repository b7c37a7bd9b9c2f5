"""The stream of batches is one and the same, whoever makes it; and workers die loudly, quickly and for good."""

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.loader import Batch, BatchLoader, WorkerDied, shard_range
from seqtrack.data.sources import open_source
from seqtrack.errors import RunError, UserError

SPEC = SampleSpec(template_size=16, search_size=32, num_templates=2)
SAMPLES, GLOBAL_BATCH = 22, 5


@pytest.fixture
def dataset(make_lasot) -> TrackingDataset:  # type: ignore[no-untyped-def]
    source = open_source("lasot", make_lasot("book-1", "coin-1"), classes=(), split="train")
    return TrackingDataset([source], [1.0], SPEC, seed=5)


def _loader(
    dataset: TrackingDataset, workers: int = 0, world_size: int = 1, rank: int = 0, **options: int
) -> BatchLoader:
    numbers = {"batch_size_global": GLOBAL_BATCH, "samples_per_epoch": SAMPLES, **options}
    return BatchLoader(dataset, world_size=world_size, rank=rank, num_workers=workers, **numbers)  # type: ignore[arg-type]


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]


def _bytes(batch: Batch) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in _tensors(batch))


def _stream(loader: BatchLoader, epoch: int, start: int = 0) -> list[bytes]:
    return [_bytes(batch) for batch in loader.batches(epoch, start)]


def test_a_batch_holds_what_its_samples_hold(dataset: TrackingDataset) -> None:
    batches = list(_loader(dataset).batches(2))
    assert [batch.count for batch in batches] == [5, 5, 5, 5, 2] and _loader(dataset).steps_per_epoch == 5
    assert [batch.global_count for batch in batches] == [5, 5, 5, 5, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(SAMPLES))
    batch = batches[1]
    assert batch.templates.shape == (5, 2, 3, 16, 16) and batch.search.shape == (5, 3, 32, 32)
    for place, index in enumerate(batch.indices.tolist()):
        sample = dataset.sample(2, index)
        np.testing.assert_array_equal(batch.templates[place], sample.templates)
        np.testing.assert_array_equal(batch.search[place], sample.search)
        np.testing.assert_array_equal(batch.boxes[place], sample.box)
        np.testing.assert_array_equal(batch.template_brightness[place], sample.template_brightness)
        assert batch.search_brightness[place] == sample.search_brightness
    assert batch.search.dtype == torch.uint8 and batch.search_brightness.dtype == torch.float32
    assert batch.template_brightness.dtype == torch.float32 and batch.boxes.dtype == torch.float32


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_makes_the_same_bytes(dataset: TrackingDataset, workers: int) -> None:
    plain, loader = _loader(dataset), _loader(dataset, workers)
    try:
        for epoch in (0, 1, 2):
            assert _stream(loader, epoch) == _stream(plain, epoch)
        assert _stream(plain, 0) != _stream(plain, 1)
    finally:
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_from_any_start_the_rest_is_the_same(dataset: TrackingDataset, workers: int) -> None:
    whole = _stream(_loader(dataset), 1)
    loader = _loader(dataset, workers)
    try:
        for start in range(6):
            assert _stream(loader, 1, start) == whole[start:]
    finally:
        loader.close()


def test_an_epoch_left_in_the_middle_does_not_disturb_the_next(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 2)
    try:
        for _ in range(3):
            left = loader.batches(0)
            next(left)
            left.close()  # type: ignore[attr-defined]
            assert _stream(loader, 1) == _stream(_loader(dataset), 1)
    finally:
        loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_put_together_have_the_global_batches_of_one(dataset: TrackingDataset, world_size: int) -> None:
    whole = list(_loader(dataset).batches(3))
    shares = [list(_loader(dataset, world_size=world_size, rank=rank).batches(3)) for rank in range(world_size)]
    for step, expected in enumerate(whole):
        parts = [distributed[step] for distributed in shares]
        assert sum(part.count for part in parts) == expected.count == parts[0].global_count
        for name in ("templates", "search", "template_brightness", "search_brightness", "boxes", "indices"):
            joined = torch.cat([getattr(part, name)[: part.count] for part in parts])
            assert torch.equal(joined, getattr(expected, name)), name


def test_a_rank_without_a_share_gets_one_sample_that_counts_nothing(dataset: TrackingDataset) -> None:
    last = list(_loader(dataset, world_size=4, rank=3).batches(0))[-1]
    assert last.count == 0 and len(last.indices) == 1 and last.global_count == 2


@pytest.mark.parametrize(("samples", "world_size"), [(5, 1), (5, 2), (5, 4), (2, 4), (16, 3), (1, 8)])
def test_shares_are_those_of_array_split(samples: int, world_size: int) -> None:
    expected = [part.tolist() for part in np.array_split(np.arange(samples), world_size)]
    assert [list(range(*shard_range(samples, world_size, rank))) for rank in range(world_size)] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_states_are_left_alone(dataset: TrackingDataset, workers: int) -> None:
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    loader = _loader(dataset, workers)
    try:
        _stream(loader, 0)
        _stream(loader, 1)
    finally:
        loader.close()
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_a_damaged_frame_met_by_a_worker_is_a_users_error_without_a_workers_traceback(
    dataset: TrackingDataset, tmp_path: Path
) -> None:
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        list(_loader(dataset, 2).batches(0))
    assert len(caught.value.problems) == 1 and "truncated" in caught.value.problems[0]
    assert "Traceback" not in str(caught.value)


def _children(parent: int) -> list[int]:
    """Living child processes, read from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _workers() -> list[int]:
    """The loader's workers; other tests' helpers, such as a fork server, may be children of this process too."""
    ours = {child.pid for child in multiprocessing.active_children()}
    return [pid for pid in _children(os.getpid()) if pid in ours]


def test_a_killed_worker_becomes_a_clear_error_quickly(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 2, samples_per_epoch=4000)
    batches = loader.batches(0)
    next(batches)
    os.kill(_workers()[0], signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL") as caught:
        for _ in batches:
            pass
    assert caught.value.code == "loader.worker_died"
    assert not multiprocessing.active_children(), "the other worker was ended as well"


def test_a_workers_death_disturbs_nothing_until_its_batch_is_waited_for(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 1, samples_per_epoch=4000)
    batches = loader.batches(0)
    next(batches)
    (worker,) = _workers()
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        sum(range(1000))  # work of the program, such as saving; nothing may be raised into it
    with pytest.raises(WorkerDied):
        list(batches)


@pytest.mark.parametrize("epochs", [0, 1], ids=["before the first epoch", "between two"])
def test_a_worker_that_died_while_it_had_nothing_to_do_is_the_same_clear_error(
    epochs: int, dataset: TrackingDataset
) -> None:
    loader = _loader(dataset, 1)
    loader.start_workers()
    for epoch in range(epochs):
        list(loader.batches(epoch))
    (worker,) = _workers()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="memory"):
        list(loader.batches(epochs))
    assert not multiprocessing.active_children()


def test_workers_that_were_started_ahead_make_the_same_batches_and_no_others_are_started(
    dataset: TrackingDataset,
) -> None:
    expected = [_stream(_loader(dataset), epoch, start) for epoch, start in ((3, 2), (4, 0))]
    loader = _loader(dataset, 2)
    assert _workers() == [], "none until they are needed or asked for"
    loader.start_workers()
    ahead = _workers()
    assert len(ahead) == 2
    loader.start_workers()
    assert [_stream(loader, 3, 2), _stream(loader, 4, 0)] == expected
    assert _workers() == ahead
    loader.close()
    assert _workers() == []


def test_after_a_worker_died_the_loader_can_be_used_again(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 1, samples_per_epoch=400)
    batches = loader.batches(0)
    next(batches)
    os.kill(_workers()[0], signal.SIGKILL)
    with pytest.raises(WorkerDied):
        list(batches)
    try:
        first = next(loader.batches(0))
        assert _bytes(first) == _bytes(next(_loader(dataset, samples_per_epoch=400).batches(0)))
    finally:
        loader.close()


def test_closing_ends_the_workers(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 2)
    next(loader.batches(0))
    assert len(_workers()) == 2
    loader.close()
    assert not _workers()
    loader.close()


_CHILD = """
    import sys, time
    from pathlib import Path
    from seqtrack.data.loader import BatchLoader
    from seqtrack.data.dataset import TrackingDataset, SampleSpec
    from seqtrack.data.sources import open_source
    source = open_source("lasot", Path(sys.argv[1]), classes=(), split="train")
    dataset = TrackingDataset([source], [1.0], SampleSpec(template_size=16, search_size=32), seed=1)
    loader = BatchLoader(dataset, batch_size_global=4, samples_per_epoch=10**6, num_workers=2)
    for batch in loader.batches(0):
        print("step", flush=True)
"""


def _start_child(root: Path) -> tuple[subprocess.Popen[str], list[int]]:
    command = [sys.executable, "-c", textwrap.dedent(_CHILD), str(root)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "step\n"
    return child, _children(child.pid)


def _wait_gone(processes: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not all(_is_gone(pid) for pid in processes) and time.monotonic() < end:
        time.sleep(0.02)
    return all(_is_gone(pid) for pid in processes)


def test_workers_leave_signals_to_the_parent(dataset: TrackingDataset, tmp_path: Path) -> None:
    """What compose sends on stop reaches the whole group: the workers must continue while the trainer saves."""
    child, workers = _start_child(tmp_path / "data")
    try:
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        assert child.stdout is not None
        for _ in range(200):
            assert child.stdout.readline() == "step\n"
        assert not any(_is_gone(worker) for worker in workers)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_the_parent(dataset: TrackingDataset, tmp_path: Path, sent: signal.Signals) -> None:
    child, workers = _start_child(tmp_path / "data")
    assert len(workers) == 2
    child.send_signal(sent)
    child.communicate(timeout=20)
    # Without the kernel's help they would notice within five seconds, and hold memory and files until then.
    assert _wait_gone(workers, 2)


_CRASH = """
    import sys
    from pathlib import Path
    from seqtrack.data.loader import BatchLoader
    from seqtrack.data.dataset import TrackingDataset, SampleSpec
    from seqtrack.data.sources import open_source
    source = open_source("lasot", Path(sys.argv[1]), classes=(), split="train")
    dataset = TrackingDataset([source], [1.0], SampleSpec(template_size=16, search_size=32), seed=1)
    loader = BatchLoader(dataset, batch_size_global=4, samples_per_epoch=10**6, num_workers=2)
    batches = loader.batches(0)
    next(batches)
    kept = [loader, batches]
    raise SystemExit(3)
"""


def test_a_program_that_ends_without_closing_does_not_hang(dataset: TrackingDataset, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_CRASH), str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    assert subprocess.run(command, env=environment, timeout=45).returncode == 3


def test_a_worker_that_is_still_is_ended_as_well(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 1, samples_per_epoch=4000)
    next(loader.batches(0))
    (worker,) = _workers()
    os.kill(worker, signal.SIGSTOP)
    loader.close()
    assert _wait_gone([worker], 5)


def _memory_mb(processes: list[int]) -> float:
    """Memory of all processes, what they share with others left out."""
    pages = 0
    for pid in processes:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        pages += int(resident) - int(shared)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _soak(dataset: TrackingDataset, epochs: int, samples: int) -> list[float]:
    loader = _loader(dataset, 2, batch_size_global=16, samples_per_epoch=samples)
    sizes = []
    try:
        for epoch in range(epochs):
            for _ in loader.batches(epoch):
                pass
            sizes.append(_memory_mb([os.getpid(), *_workers()]))
    finally:
        loader.close()
    return sizes


@pytest.mark.long
def test_memory_does_not_grow_over_twenty_epochs(dataset: TrackingDataset) -> None:
    sizes = _soak(dataset, 20, 320)
    assert sizes[-1] - sizes[4] < 10, sizes


@pytest.mark.long
def test_memory_does_not_grow_over_twenty_long_epochs(dataset: TrackingDataset) -> None:
    sizes = _soak(dataset, 20, 8000)
    assert sizes[-1] - sizes[2] < 10, sizes


def test_the_sum_of_an_epoch_is_reproducible_in_another_process(dataset: TrackingDataset, tmp_path: Path) -> None:
    """Nothing of this process, such as its hash seed, enters a sample."""
    code = """
        import hashlib, sys
        from pathlib import Path
        from seqtrack.data.dataset import TrackingDataset, SampleSpec
        from seqtrack.data.sources import open_source
        source = open_source("lasot", Path(sys.argv[1]), classes=(), split="train")
        dataset = TrackingDataset([source], [1.0], SampleSpec(template_size=16, search_size=32), seed=5)
        print(hashlib.sha256(b"".join(dataset.sample(0, i).search.tobytes() for i in range(20))).hexdigest())
    """
    here = hashlib.sha256(b"".join(dataset.sample(0, i).search.tobytes() for i in range(20))).hexdigest()
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONHASHSEED": "77"}
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("wrong", [{"batch_size_global": 0}, {"samples_per_epoch": 0}, {"workers": -1}])
def test_impossible_numbers_are_refused(dataset: TrackingDataset, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least"):
        _loader(dataset, **wrong)


class _Broken(TrackingDataset):
    """Fails at one sample, as a bug or a lack of the system's would."""

    error: Exception

    def sample(self, epoch: int, index: int):  # type: ignore[no-untyped-def]
        if index == 7:
            raise self.error
        return super().sample(epoch, index)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "0001.jpg"), "limits.open_files"),
        (MemoryError(), "limits.memory"),
        (ZeroDivisionError("by zero in worker"), "loader.worker_failed"),
    ],
)
def test_a_workers_error_is_one_line_with_its_reason_and_the_workers_traceback_behind_it(
    dataset: TrackingDataset, error: Exception, code: str
) -> None:
    dataset.__class__, dataset.error = _Broken, error  # type: ignore[attr-defined]
    loader = _loader(dataset, 2)
    with pytest.raises(RunError) as caught:
        list(loader.batches(0))
    assert caught.value.code == code
    assert (str(error) or type(error).__name__) in str(caught.value) and "\n" not in str(caught.value)
    assert "in sample" in str(caught.value.__cause__)
    assert not _workers()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_request_to_stop_ends_the_wait_for_a_worker_that_is_still(dataset: TrackingDataset, world_size: int) -> None:
    loader = _loader(dataset, 1, world_size=world_size, samples_per_epoch=4000)
    loader._stop_patience_s = 0.0 if world_size == 1 else 0.5
    batches = loader.batches(0, stop=lambda: True)
    next(batches)
    (worker,) = _workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        assert len(list(batches)) <= 2, "what was made before, and no more"
    finally:
        loader.close()
    assert _wait_gone([worker], 5)


def test_a_request_to_stop_takes_no_batch_away_that_is_there_in_time(dataset: TrackingDataset) -> None:
    loader = _loader(dataset, 2, world_size=2)
    try:
        assert [_bytes(one) for one in loader.batches(0, stop=lambda: True)] == _stream(
            _loader(dataset, world_size=2), 0
        )
    finally:
        loader.close()


_STREAM = """
    import hashlib, os, resource, sys
    from pathlib import Path
    from seqtrack.data.loader import BatchLoader
    from seqtrack.data.dataset import TrackingDataset, SampleSpec
    from seqtrack.data.sources import open_source
    from seqtrack.errors import RunError
    source = open_source("lasot", Path(sys.argv[1]), classes=(), split="train")
    dataset = TrackingDataset([source], [1.0], SampleSpec(template_size=256, search_size=256), seed=1)
    for limit in sys.argv[2:]:
        kind, value = limit.split("=")
        resource.setrlimit(getattr(resource, kind), (int(value), int(value)))
    try:
        loader = BatchLoader(dataset, batch_size_global=8, samples_per_epoch=40, num_workers=2)
        before = len(os.listdir("/proc/self/fd"))
        loader.start_workers()
        digest = hashlib.sha256()
        for batch in loader.batches(0):
            digest.update(batch.search.numpy().tobytes())
        print(digest.hexdigest(), len(os.listdir("/proc/self/fd")) - before)
        loader.close()
    except RunError as error:
        print(error.code)
"""


def _stream_in_a_process(root: Path, *limits: str, before: tuple[str, ...] = ()) -> list[str]:
    command = [*before, sys.executable, "-c", textwrap.dedent(_STREAM), str(root), *limits]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout.split()


def test_few_descriptors_and_a_tiny_shared_memory_are_enough_and_too_few_are_named(
    dataset: TrackingDataset, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    usual = _stream_in_a_process(data)
    assert int(usual[1]) == 6, "open files do not grow with the batches: three for each of two workers"
    assert _stream_in_a_process(data, "RLIMIT_NOFILE=16") == usual
    tiny = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"', "sh")
    if subprocess.run([*tiny, "true"], capture_output=True).returncode == 0:
        assert _stream_in_a_process(data, before=tiny) == usual
    assert _stream_in_a_process(data, "RLIMIT_NOFILE=5") == ["limits.open_files"]
    assert _stream_in_a_process(data, "RLIMIT_AS=1000000") == ["limits.address_space"]
