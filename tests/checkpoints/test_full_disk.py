"""A disk that fills up in the middle of a save: an error with its cause, and unchanged older checkpoints.

The disks are real: small tmpfs mounts, filled up to a number of pages.
"""

import errno
import functools
import os
import stat
import tempfile
from pathlib import Path

import pytest
import runs
import torch
from runs import environment

from checkpoints.test_damage import FACTS, write_small
from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.checkpoints.store import list_checkpoints, manifest_of, verify_checkpoint, write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.config.loader import EXPERIMENTS
from seqtrack.errors import RunError
from seqtrack.training.checkpointer import Checkpointer

PAGE = os.sysconf("SC_PAGE_SIZE")


def _leave(disk: Path, pages: int) -> None:
    """Fill the disk until that many pages are free."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes((os.statvfs(disk).f_bavail - pages) * PAGE))
    assert os.statvfs(disk).f_bavail == pages


def test_a_disk_that_fills_at_any_page_of_a_save_leaves_the_older_checkpoint_and_no_half(disk: Path) -> None:
    older = write_small(disk, 1)
    before = older.path.read_bytes(), older.manifest_path.read_bytes()
    weights = {"model/weight": tensor_bytes(torch.arange(6 * PAGE // 4, dtype=torch.float32))}
    outcomes = []
    for pages in range(14):
        _leave(disk, pages)
        try:
            write_checkpoint(disk / "SEQTRACK_ep0002.safetensors", weights, {}, describe=FACTS)
            outcomes.append("written")
            assert [item.epoch for item in list_checkpoints(disk)] == [1, 2]
            verify_checkpoint(manifest_of(disk / "SEQTRACK_ep0002.json"))
        except OSError as error:
            outcomes.append("refused")
            assert error.errno == errno.ENOSPC
            assert [item.epoch for item in list_checkpoints(disk)] == [1], "no manifest of an incomplete file"
            assert not list(disk.glob(".*.tmp")), "no half-written file takes the space that is left"
        assert (older.path.read_bytes(), older.manifest_path.read_bytes()) == before
        for path in disk.glob("SEQTRACK_ep0002*"):
            path.unlink()
    assert outcomes == sorted(outcomes), "refused until there is room, then written"
    assert 6 < outcomes.count("refused") < len(outcomes), "the file takes seven pages, its manifest one more"


def test_a_small_file_is_replaced_completely_or_not_at_all(disk: Path) -> None:
    path = disk / "run.json"
    write_atomic(path, b"old")
    _leave(disk, 0)
    with pytest.raises(OSError) as failure:
        write_atomic(path, b"new" * PAGE)
    assert (failure.value.errno, failure.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old" and not list(disk.glob(".*.tmp"))


def test_a_write_that_fails_in_the_background_stops_the_run_and_too_little_space_is_reported_before(disk: Path) -> None:
    checkpointer = Checkpointer(disk, parent_sha256=None)
    checkpointer.before_write = lambda: _leave(disk, 2)
    checkpointer.save("SEQTRACK_ep0002.safetensors", {"model/w": torch.zeros(64 * PAGE)}, {}, describe=FACTS)
    with pytest.raises(OSError) as failure:
        checkpointer.wait()
    assert failure.value.filename == str(disk / "SEQTRACK_ep0002.safetensors")
    assert list_checkpoints(disk) == []
    checkpointer.check()
    _leave(disk, 2 * 1024 * 1024 // PAGE)
    with pytest.raises(RunError, match=r"\b2 MB.*\b4 MB") as refusal:
        Checkpointer(disk, parent_sha256=None).preallocate({"model/w": torch.zeros(10**6)})
    assert refusal.value.code == "run.no_space"


def test_every_file_of_a_run_has_what_the_umask_leaves(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "32"}, EPOCHS=1)
    for word in ("train", "report"):
        with runs.start(env, word, prepare=functools.partial(os.umask, 0o077)) as running:
            ended = running.end()
        assert ended.code == 0, ended.said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "config.yaml", "metrics.jsonl", "phase_1_loss.png"} <= {path.name for path in files}
    modes = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    assert {path: mode for path, mode in modes.items() if mode != oct(0o600)} == {}


@pytest.mark.parametrize(("name", "code"), [("plots/phase_1_loss.png", 0), ("environment.json", 1), ("run.json", 2)])
def test_a_file_that_cannot_be_written_is_named_and_a_plot_does_not_end_the_run(
    name: str, code: int, demo_data: Path, tmp_path: Path
) -> None:
    place = tmp_path / "phase_1" / name
    env = environment(tmp_path, demo_data, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "32"}, EPOCHS=1)
    place.mkdir(parents=True)  # a rename onto a folder fails for root as well
    ended = runs.train(env)
    assert (ended.code, str(place) in ended.said) == (code, True), ended.said


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_disk_that_is_full_under_the_log_ends_the_run_with_its_cause(
    is_relative: bool, demo_data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "phase_1" / "logs" / "seqtrack-demo.log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    base = Path(tempfile.gettempdir())  # where the run is started
    output = Path("..", base.name, os.path.relpath(tmp_path, base)) if is_relative else tmp_path
    ended = runs.train(environment(output, demo_data, EPOCHS=1))
    assert (ended.code, ended.codes, str(log) in ended.said) == (1, ["run.disk"], True), ended.said
    assert "Traceback" not in ended.said


def test_the_log_of_a_configuration_with_a_long_name_has_a_shorter_one(demo_data: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{'c' * 100}{'ü' * 72}.yaml"  # 249 bytes, of 255 at most
    path.write_bytes((EXPERIMENTS / "demo.yaml").read_bytes())
    env = environment(tmp_path, demo_data, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "32"}, CONFIG=path, EPOCHS=1)
    runs.completed(env)
    assert len(runs.log_of(tmp_path).splitlines()) > 10
