"""A disk that fills up in the middle of a save: an error with its cause, and unchanged older checkpoints.

The disks are real: small tmpfs mounts, filled up to a number of pages.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoints.test_damage import DESCRIBE, write_small
from seqtrack.checkpoints.safetensors_io import write_atomic, write_checkpoint_file
from seqtrack.checkpoints.store import list_checkpoints, manifest_of, verify_checkpoint, write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.errors import RunError
from seqtrack.training.checkpointer import Checkpointer

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 17 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={16 * 1024 * 1024 + 256 * PAGE}", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _leave(disk: Path, pages: int) -> None:
    """Fill the disk until that many pages are free."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail
    with filler.open("wb") as file:
        file.write(bytes((free - pages) * PAGE))
    assert os.statvfs(disk).f_bavail == pages


def _write_second(folder: Path) -> None:
    weights = {"model/weight": tensor_bytes(torch.arange(6 * PAGE // 4, dtype=torch.float32))}
    facts = {"kind": "epoch", "epoch": 2, "step": 20, "sample": 0, "loss": 1.0, "iou": 0.5}
    write_checkpoint(folder / "SEQTRACK_ep0002.safetensors", weights, {}, describe={**DESCRIBE, **facts})


def test_a_disk_that_fills_at_any_page_of_a_save_leaves_the_older_checkpoint_and_no_half(disk: Path) -> None:
    folder = disk / "checkpoints"
    folder.mkdir()
    older = write_small(folder, 1)
    before = older.path.read_bytes(), older.manifest_path.read_bytes()
    outcomes = []
    for pages in range(14):
        _leave(disk, pages)
        try:
            _write_second(folder)
            outcomes.append("written")
            assert [item.epoch for item in list_checkpoints(folder)] == [1, 2]
            verify_checkpoint(manifest_of(folder / "SEQTRACK_ep0002.json"))
        except OSError as error:
            outcomes.append("refused")
            assert error.errno == errno.ENOSPC
            assert [item.epoch for item in list_checkpoints(folder)] == [1], "no manifest of an incomplete file"
            assert not list(folder.glob(".*.tmp")), "no half-written file takes the space that is left"
        assert (older.path.read_bytes(), older.manifest_path.read_bytes()) == before
        for path in folder.glob("SEQTRACK_ep0002*"):
            path.unlink()
    assert outcomes[0] == "refused" and outcomes[-1] == "written"
    assert outcomes == sorted(outcomes), "refused until there is room, then written"
    assert outcomes.count("refused") > 6, "the checkpoint file takes seven pages, its manifest one more"


def test_a_small_file_is_replaced_completely_or_not_at_all(disk: Path) -> None:
    path = disk / "run.json"
    write_atomic(path, b"old")
    _leave(disk, 0)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new" * PAGE)
    assert path.read_bytes() == b"old"
    assert not list(disk.glob(".*.tmp"))


def _describe(step: int) -> dict[str, object]:
    facts = {"kind": "epoch", "epoch": 1, "step": step, "sample": 0, "loss": 1.0, "iou": 0.5}
    return {**{key: value for key, value in DESCRIBE.items() if key != "parent_sha256"}, **facts}


def test_a_write_that_fails_in_the_background_stops_the_run_at_its_next_step(disk: Path) -> None:
    folder = disk / "checkpoints"
    folder.mkdir()
    checkpointer = Checkpointer(folder, parent_sha256=None)
    checkpointer.before_write = lambda: _leave(disk, 2)
    tensors = {"model/weight": torch.zeros(64 * PAGE)}
    checkpointer.save("SEQTRACK_ep0001.safetensors", tensors, {}, describe=_describe(1))
    with pytest.raises(RunError) as failure:
        checkpointer.wait()
    assert failure.value.code == "run.disk"
    assert str(folder / "SEQTRACK_ep0001.safetensors") in str(failure.value)
    assert list_checkpoints(folder) == []
    checkpointer.check()


def test_too_little_space_is_reported_before_the_write(disk: Path) -> None:
    _leave(disk, 2 * 1024 * 1024 // PAGE)
    checkpointer = Checkpointer(disk, parent_sha256=None)
    tensors = {"model/w": torch.zeros(10**6)}
    for save in (
        lambda: checkpointer.save("SEQTRACK_ep0001.safetensors", tensors, {}, describe=_describe(1)),
        lambda: checkpointer.preallocate(tensors),
    ):
        with pytest.raises(RunError, match=r"\b2 MB.*\b4 MB") as failure:
            save()
        assert failure.value.code == "run.no_space"


def test_a_read_only_folder_is_an_error_with_its_cause(disk: Path) -> None:
    manifest = write_small(disk, 1)
    before = manifest.path.read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        write_checkpoint_file(disk / "SEQTRACK_ep0002.safetensors", {}, {})
    assert manifest.path.read_bytes() == before
