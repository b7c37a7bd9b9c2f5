"""One process of several fails, is stopped or takes long, at each stage of a run: the others must end, or must wait."""

import errno
import itertools
import os
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, environment, numbers

from faults.process_pairs import ranks_of, together
from seqtrack.data.demo import Plan, demo_set
from seqtrack.errors import UserError

VALIDATES = {"TRAIN.VALIDATION_INTERVAL": "1", "TRAIN.VALIDATION_SEQUENCES": "1"}


@pytest.fixture(scope="module")
def short_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn videos of which those to validate on are short."""
    folder = tmp_path_factory.mktemp("short")
    demo_set(Plan(train_sequences=2, train_frames=25, test_sequences=1, test_frames=14)).draw_into(folder / "lasot")
    return folder


def _environment(output: Path, data: Path, epochs: int) -> dict[str, str]:
    return environment(output, data, VALIDATES, EPOCHS=epochs, DATASET="lasot", CONFIG="demo")


def _fail(stage: str, rank: int) -> None:
    """Make a function of one rank raise at one of its calls."""
    if os.environ["RANK"] != str(rank):
        return
    from seqtrack import train
    from seqtrack.data.dataset import TrackingDataset
    from seqtrack.evaluation import run
    from seqtrack.model.seqtrack import SeqTrack
    from seqtrack.training import checkpointer

    file = f"{os.environ['OUTPUT_DIR']}/phase_1/file"
    stages: dict[str, tuple[Any, str, int, Exception]] = {
        "start": (train, "load_state", 1, KeyError("planted")),
        "data": (TrackingDataset, "sample", 20, UserError("planted", code="data.planted")),
        "forward": (SeqTrack, "forward", 3, torch.OutOfMemoryError("planted")),
        "save": (checkpointer, "write_checkpoint", 1, OSError(errno.ENOSPC, "planted", file)),
        "validation": (run, "track_sequences", 1, ValueError("planted")),
    }
    owner, name, last, error = stages[stage]
    inner, calls = getattr(owner, name), itertools.count(1)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == last:
            raise error
        return inner(*args, **kwargs)

    setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("stage", "rank", "code"),
    [
        ("start", 0, "run.unexpected_error"),
        ("data", 1, "data.planted"),
        ("forward", 1, "device.out_of_memory"),
        ("save", 0, "run.disk"),
        pytest.param("validation", 0, "run.unexpected_error", marks=pytest.mark.long),
    ],
)
def test_a_failure_of_one_rank_at_any_stage_ends_all(
    stage: str, rank: int, code: str, short_data: Path, tmp_path: Path
) -> None:
    with ranks_of(_environment(tmp_path, short_data, 30), 3, partial(_fail, stage, rank)) as distributed:
        ended = [one.end() for one in distributed]
    for number, one in enumerate(ended):
        assert one.codes == [code if number == rank else "run.peer_lost"], one.said
        assert one.code == (2 if one.codes == ["data.planted"] else 1)
        assert "Traceback" not in one.said or one.codes == ["run.unexpected_error"]


def _gate(folder: Path, meeting_s: float) -> None:
    """Hold the validation of rank 0 from its first frame on, until a file lets it continue."""
    from seqtrack.evaluation import run
    from seqtrack.runtime import distributed

    inner = run.read_frame

    def gated(path: Path) -> Any:
        (folder / "validating").touch()
        while not (folder / "continue").exists():
            time.sleep(0.002)
        return inner(path)

    run.read_frame = gated
    distributed._MEETING_LIMIT = timedelta(seconds=meeting_s)


@pytest.fixture(scope="module")
def validated(short_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes with validations, that nothing disturbed."""
    output = tmp_path_factory.mktemp("validated")
    together(_environment(output, short_data, 2), 2)
    return output / "phase_1"


def _scored(folder: Path) -> list[int]:
    return [record["epoch"] for record in numbers(folder) if record["type"] == "validation"]


@pytest.mark.parametrize(
    ("killed", "number", "codes", "scored"),
    [
        (1, signal.SIGTERM, [75, 75], [1]),
        (0, signal.SIGKILL, [-signal.SIGKILL, 1], []),
        pytest.param(1, 0, [0, 0], [1, 2], marks=pytest.mark.long, id="what rank 0 does alone may take long"),
    ],
)
def test_a_run_that_ends_inside_a_validation_keeps_the_epoch_and_catches_the_validation_up(
    killed: int, number: int, codes: list[int], scored: list[int], validated: Path, short_data: Path, tmp_path: Path
) -> None:
    assert _scored(validated) == [1, 2]
    env, folder = _environment(tmp_path / "out", short_data, 2), tmp_path / "out" / "phase_1"
    with ranks_of(env, 2, partial(_gate, tmp_path, 900.0 if number else 4.0)) as distributed:
        assert distributed[0].until((tmp_path / "validating").exists)
        assert (folder / "checkpoints" / "SEQTRACK_ep0001.json").exists()
        distributed[killed].signal(number)
        if number != signal.SIGTERM:
            distributed[killed].process.join(None if number else 6.0)
        (tmp_path / "continue").touch()
        assert [one.end().code for one in distributed] == codes
    assert _scored(folder) == scored
    together(env, 2)
    assert_same_run(folder, validated)
