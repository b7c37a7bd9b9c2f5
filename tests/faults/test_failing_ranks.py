"""One process of several fails, is stopped or takes long, at each stage of a run: the others must end, or must wait."""

import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_run, environment, numbers

from faults.process_pairs import ranks_of, together

VALIDATES = {"TRAIN.VALIDATION_INTERVAL": "1", "TRAIN.VALIDATION_SEQUENCES": "1"}


def _patch(owner: object, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, around(getattr(owner, name)))


def _short_sequences() -> None:
    """Validate on the first frames of a sequence only."""
    from seqtrack.evaluation import run

    def around(inner: Callable[..., Any]) -> Callable[..., Any]:
        def on_few(model: Any, sequences: list[Any], *args: Any, **kwargs: Any) -> Any:
            few = [
                dataclasses.replace(
                    one, **{name: getattr(one, name)[:4] for name in ("boxes_xywh", "absent", "frame_bytes")}
                )
                for one in sequences
            ]
            return inner(model, few, *args, **kwargs)

        return on_few

    _patch(run, "validate", around)


def _raise(error: Exception, *, call: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function raise at its `call`-th call."""

    def around(inner: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def failing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return inner(*args, **kwargs)

        return failing

    return around


def _fail(stage: str, rank: int) -> None:
    if os.environ["RANK"] != str(rank):
        return
    from seqtrack import train
    from seqtrack.data.dataset import TrackingDataset
    from seqtrack.evaluation import run
    from seqtrack.model.seqtrack import SeqTrack
    from seqtrack.training import checkpointer

    file = f"{os.environ['OUTPUT_DIR']}/phase_1/file"
    {
        "start": lambda: _patch(train, "load_state", _raise(KeyError("planted"), call=1)),
        "data": lambda: _patch(TrackingDataset, "sample", _raise(ValueError("planted"), call=20)),
        "forward": lambda: _patch(SeqTrack, "forward", _raise(torch.OutOfMemoryError("planted"), call=3)),
        "save": lambda: _patch(
            checkpointer, "write_checkpoint", _raise(OSError(errno.ENOSPC, "planted", file), call=1)
        ),
        "validation": lambda: _patch(run, "track_sequences", _raise(ValueError("planted"), call=1)),
    }[stage]()


@pytest.mark.parametrize(
    ("stage", "rank", "code"),
    [
        ("start", 0, "run.unexpected_error"),
        pytest.param("data", 1, "run.unexpected_error", marks=pytest.mark.long),
        ("forward", 1, "device.out_of_memory"),
        ("save", 0, "run.disk"),
        pytest.param("validation", 0, "run.unexpected_error", marks=pytest.mark.long),
    ],
)
def test_a_failure_of_one_rank_at_any_stage_ends_all(
    stage: str, rank: int, code: str, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, VALIDATES, EPOCHS=30)
    with ranks_of(env, 3, partial(_fail, stage, rank)) as distributed:
        ended = [one.end() for one in distributed]
    assert [one.code for one in ended] == [1, 1, 1]
    for number, one in enumerate(ended):
        assert one.codes == [code if number == rank else "run.peer_lost"], one.said


def _gate(folder: Path) -> None:
    """Hold the validation of rank 0 from its first frame on, until a file lets it continue."""
    from seqtrack.evaluation import run

    _short_sequences()

    def around(inner: Callable[..., Any]) -> Callable[..., Any]:
        def gated(path: Path) -> Any:
            (folder / "validating").touch()
            while not (folder / "continue").exists():
                time.sleep(0.002)
            return inner(path)

        return gated

    _patch(run, "read_frame", around)


@pytest.fixture(scope="module")
def validated(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes with validations, that nothing disturbed."""
    output = tmp_path_factory.mktemp("validated")
    together(environment(output, demo_data, VALIDATES, EPOCHS=2), 2, _short_sequences)
    return output / "phase_1"


def _scored(folder: Path) -> list[int]:
    return [record["epoch"] for record in numbers(folder) if record["type"] == "validation"]


@pytest.mark.parametrize(
    ("killed", "number", "codes", "scored"),
    [
        (1, signal.SIGTERM, [75, 75], [1]),
        (0, signal.SIGKILL, [-signal.SIGKILL, 1], []),
        pytest.param(1, signal.SIGKILL, [1, -signal.SIGKILL], [1], marks=pytest.mark.long),
    ],
)
def test_a_run_that_ends_inside_a_validation_keeps_the_epoch_and_catches_the_validation_up(
    killed: int, number: int, codes: list[int], scored: list[int], validated: Path, demo_data: Path, tmp_path: Path
) -> None:
    assert _scored(validated) == [1, 2]
    env, folder = environment(tmp_path / "out", demo_data, VALIDATES, EPOCHS=2), tmp_path / "out" / "phase_1"
    with ranks_of(env, 2, partial(_gate, tmp_path)) as distributed:
        assert distributed[0].until((tmp_path / "validating").exists)
        assert (folder / "checkpoints" / "SEQTRACK_ep0001.json").exists()
        distributed[killed].signal(number)
        if number == signal.SIGKILL:
            distributed[killed].end()
        (tmp_path / "continue").touch()
        assert [one.end().code for one in distributed] == codes
    assert _scored(folder) == scored
    together(env, 2, _short_sequences)
    assert_same_run(folder, validated)


def _short_meeting(folder: Path) -> None:
    """Processes that wait for each other for four seconds at the start."""
    from seqtrack.runtime import distributed

    _gate(folder)
    distributed._MEETING_LIMIT = timedelta(seconds=4.0)


@pytest.mark.long
def test_what_rank_0_does_alone_may_take_longer_than_any_limit(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "out", demo_data, VALIDATES, EPOCHS=1)
    with ranks_of(env, 2, partial(_short_meeting, tmp_path)) as distributed:
        assert distributed[0].until((tmp_path / "validating").exists)
        distributed[1].process.join(6.0)
        (tmp_path / "continue").touch()
        assert [one.end().code for one in distributed] == [0, 0]
    assert _scored(tmp_path / "out" / "phase_1") == [1]
