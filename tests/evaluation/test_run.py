"""Tracking of whole sequences, and validation that leaves a training run unchanged."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import completed, environment, epochs, numbers, train

from seqtrack.data.sequence import Sequence
from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.results import score_tracker
from seqtrack.evaluation.run import read_frame, track_sequences, validate
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracking.tracker import BatchTracker, TrackerSettings

SETTINGS = TrackerSettings()


@pytest.mark.parametrize("concurrent", [1, 3])
def test_the_number_tracked_at_once_does_not_change_the_boxes(
    model: SeqTrack, sequences: list[Sequence], concurrent: int
) -> None:
    """Three at once means that one sequence starts when another ends; one of them has a single frame."""
    first = sequences[0]
    cut = {name: getattr(first, name)[:1] for name in ("boxes_xywh", "absent", "frame_bytes")}
    sequences = [*sequences[1:], dataclasses.replace(first, **cut)]
    progress: list[int] = []
    tracks = track_sequences(model.eval(), sequences, SETTINGS, concurrent=concurrent, on_frames=progress.append)
    assert list(tracks) == [sequence.name for sequence in sequences]
    assert sum(progress) == sum(sequence.num_frames - 1 for sequence in sequences)
    tracker = BatchTracker(model, SETTINGS)
    for sequence in sequences:
        found, given = tracks[sequence.name], sequence.boxes_xywh[0].tolist()
        state = tracker.start(read_frame(sequence.frame_path(0)), given)
        frames = (read_frame(sequence.frame_path(index)) for index in range(1, sequence.num_frames))
        boxes = [given, *(tracker.track([state], [frame])[0].box_xywh for frame in frames)]
        np.testing.assert_allclose(found.boxes_xywh, boxes, atol=1e-6)
        assert found.boxes_xywh[0].tolist() == given and (found.seconds > 0) == (sequence.num_frames > 1)
    assert len({one.boxes_xywh.tobytes() for one in tracks.values()}) == len(sequences), "the videos differ"


def test_validation_gives_the_means_of_the_protocol_and_leaves_every_mode_and_random_state_unchanged(
    model: SeqTrack, sequences: list[Sequence], tmp_path: Path
) -> None:
    tracks = track_sequences(model.eval(), sequences, SETTINGS)
    expected = score_tracker("", "", tracks, sequences).record.mean
    model.train()
    model.bottleneck.eval()  # a frozen component must stay in eval mode

    def state() -> tuple[object, ...]:
        numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
        modes = [module.training for module in model.modules()]
        return torch.get_rng_state().tolist(), numpys, random.getstate(), torch.is_grad_enabled(), modes

    before = state()
    found = validate(model, sequences, SETTINGS)
    assert found == {name: expected[name] for name in METRICS} | {"sequences": 4, "frames": 56, "fps": found["fps"]}
    assert validate(model, sequences, SETTINGS, stopped=lambda: True) is None
    with pytest.raises(UserError):
        validate(model, [dataclasses.replace(sequences[0], folder=tmp_path)], SETTINGS)
    assert state() == before
    assert all(parameter.grad is None for parameter in model.parameters())


SMALL = {"DATA.TRAIN.SAMPLE_PER_EPOCH": 16, "DATA.MAX_SAMPLE_INTERVAL": 20, "TRAIN.BATCH_SIZE": 8}


def test_a_run_with_validation_ends_in_the_bits_of_one_without(tmp_path: Path, data_dir: Path) -> None:
    """Dropout draws from torch's global state: a validation that moved it would show in the weights."""
    for interval in (0, 1):
        keys = {**SMALL, "TRAIN.VALIDATION_INTERVAL": interval}
        completed(environment(tmp_path / str(interval), data_dir, keys, EPOCHS=1, DATASET="lasot", CONFIG="demo"))
    without, validated = (epochs(tmp_path / name / "phase_1") for name in "01")
    assert len(validated) == 1
    assert {epoch: one.sha256 for epoch, one in validated.items()} == {e: one.sha256 for e, one in without.items()}
    scores, none = (
        [one for one in numbers(tmp_path / name / "phase_1") if one["type"] == "validation"] for name in "10"
    )
    assert [one["epoch"] for one in scores] == [1] and not none
    assert all(0 <= one[name] <= 100 for one in scores for name in METRICS) and scores[0]["sequences"] == 4


def test_a_sequence_that_is_trained_on_and_held_out_stops_the_run_before_it_begins(
    tmp_path: Path, data_dir: Path
) -> None:
    data = Path(shutil.copytree(data_dir, tmp_path / "lasot"))
    shutil.rmtree(data / "disk" / "disk-3")
    shutil.copytree(data / "disk" / "disk-1", data / "disk" / "disk-3", ignore=shutil.ignore_patterns("img"))
    (data / "disk" / "disk-3" / "img").symlink_to(data / "disk" / "disk-1" / "img")
    keys = {**SMALL, "TRAIN.VALIDATION_INTERVAL": 1}
    ended = train(environment(tmp_path / "output", data, keys, DATASET="lasot", CONFIG="demo"))
    assert (ended.code, ended.codes) == (2, ["evaluation.leak"])
    assert not (tmp_path / "output" / "phase_1" / "checkpoints").exists()
