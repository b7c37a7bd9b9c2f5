"""Every file of a run has the mode that the umask leaves; a failed write names the file that could not be written."""

import errno
import functools
import os
import stat
from pathlib import Path

import pytest
import runs
import torch
from runs import demo_data, environment

from checkpoints.test_full_disk import _describe
from seqtrack.checkpoints.safetensors_io import new_file, write_atomic, write_checkpoint_file
from seqtrack.errors import RunError
from seqtrack.training.checkpointer import Checkpointer

__all__ = ["demo_data"]


@pytest.mark.parametrize("mask", [0o077, pytest.param(0o022, marks=pytest.mark.long)])
def test_every_file_of_a_run_has_what_the_umask_leaves(mask: int, demo_data: Path, tmp_path: Path) -> None:
    keys = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "32"}
    target = tmp_path / "target"
    env = environment(
        tmp_path / "out", demo_data, keys, EPOCHS=2, UPLOAD_TARGET=f"folder:{target}", UPLOAD_TUNING='{"settle_s": 0.2}'
    )
    jobs = [({}, ["train"]), ({"PHASE": "2", "RESUME_EPOCH": "1"}, ["train"]), ({}, ["report", "--html"])]
    for variables, arguments in jobs:
        with runs.start({**env, **variables}, *arguments, prepare=functools.partial(os.umask, mask)) as running:
            ended = running.end()
        assert ended.code == 0, ended.said
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"run.json", "config.yaml", "environment.json", "dataset.json", "metrics.jsonl", "phase_1_loss.png"} <= {
        path.name for path in files
    }
    modes = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    assert {path: mode for path, mode in modes.items() if mode != oct(0o666 & ~mask)} == {}


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "run.json"
    for write in (lambda: write_atomic(path, b"x"), lambda: write_checkpoint_file(path, {}, {})):
        with pytest.raises(OSError) as failure:
            write()
        assert failure.value.errno == errno.ENOENT and failure.value.filename == str(path)


def test_an_error_in_the_middle_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    with pytest.raises(OSError) as failure, new_file(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert failure.value.filename == str(path) and str(path) in str(failure.value)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == {"x.json": b"old"}


def test_a_plot_that_cannot_be_written_does_not_end_a_run_and_is_named(demo_data: Path, tmp_path: Path) -> None:
    plots = tmp_path / "phase_1" / "plots"
    plots.mkdir(parents=True)
    (plots / "phase_1_loss.png").mkdir()  # a rename onto a folder fails for root as well
    ended = runs.completed(environment(tmp_path, demo_data, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "32"}, EPOCHS=1))
    assert str(plots / "phase_1_loss.png") in ended.said


def test_a_checkpoint_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "SEQTRACK_ep0001.json").mkdir()
    checkpointer = Checkpointer(tmp_path, parent_sha256=None)
    checkpointer.save("SEQTRACK_ep0001.safetensors", {"model/w": torch.zeros(4)}, {}, describe=_describe(1))
    with pytest.raises(RunError) as failure:
        checkpointer.wait()
    assert failure.value.code == "run.disk" and str(tmp_path / "SEQTRACK_ep0001.json") in str(failure.value)
