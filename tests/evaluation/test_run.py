"""Tracking of whole sequences, and validation that leaves a training run unchanged."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.data.sequence import Sequence
from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.results import score_tracker
from seqtrack.evaluation.run import read_frame, refuse_leak, track_sequences, validate
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracking.settings import TrackerSettings
from seqtrack.tracking.tracker import BatchTracker

SETTINGS = TrackerSettings()


@pytest.mark.parametrize("concurrent", [1, 3])
def test_the_number_tracked_at_once_does_not_change_the_boxes(
    model: SeqTrack, sequences: list[Sequence], concurrent: int
) -> None:
    """Three at once means that one sequence starts when another ends."""
    tracks = track_sequences(model.eval(), sequences, SETTINGS, concurrent=concurrent)
    assert list(tracks) == [sequence.name for sequence in sequences]
    for sequence in sequences:
        found, first = tracks[sequence.name], sequence.boxes_xywh[0].tolist()
        tracker = BatchTracker(model, SETTINGS)
        states = tracker.start([read_frame(sequence.frame_path(0))], [first])
        frames = (read_frame(sequence.frame_path(index)) for index in range(1, sequence.num_frames))
        boxes = [first, *(tracker.track(states, [frame])[0].box_xywh for frame in frames)]
        np.testing.assert_allclose(found.boxes_xywh, boxes, atol=1e-6)
        assert found.boxes_xywh[0].tolist() == first and found.seconds > 0


@pytest.mark.parametrize("batches", [1, 2])
def test_boxes_are_equal_to_the_last_byte_for_any_number_of_readers(
    model: SeqTrack, sequences: list[Sequence], batches: int
) -> None:
    """Two sequences at once in two batches that take turns, so that sequences start while others are running."""
    progress: list[int] = []
    tracked = [
        track_sequences(
            model.eval(), sequences, SETTINGS,
            concurrent=2, readers=readers, batches=batches, on_frames=progress.append,
        )
        for readers in (1, 8)
    ]  # fmt: skip
    for name in tracked[0]:
        assert len({one[name].boxes_xywh.tobytes() for one in tracked}) == 1
    assert len({one.boxes_xywh.tobytes() for one in tracked[0].values()}) == len(sequences), "the videos differ"
    assert sum(progress) == 2 * sum(sequence.num_frames - 1 for sequence in sequences)


def test_a_frame_that_cannot_be_read_names_its_file(model: SeqTrack, sequences: list[Sequence], tmp_path: Path) -> None:
    broken = dataclasses.replace(sequences[0], folder=tmp_path / "img")
    shutil.copytree(sequences[0].folder, tmp_path / "img")
    broken.frame_path(5).write_bytes(broken.frame_path(5).read_bytes()[:200])
    with pytest.raises(UserError, match=r"00000006\.jpg"):
        track_sequences(model.eval(), [broken], SETTINGS)


class TestValidation:
    def test_gives_the_means_of_the_protocol(
        self, model: SeqTrack, sequences: list[Sequence], training_sequences: list[Sequence]
    ) -> None:
        found = validate(model, sequences, SETTINGS, trained_on=training_sequences)
        assert found is not None
        tracks = track_sequences(model.eval(), sequences, SETTINGS)
        expected = score_tracker("", "", tracks, sequences).record.mean
        assert {name: found[name] for name in METRICS} == {name: expected[name] for name in METRICS}
        again = validate(model, sequences, SETTINGS, trained_on=[])
        assert {**found, "fps": 0} == {**again, "fps": 0}
        assert (found["sequences"], found["frames"]) == (4, 56)

    def test_leaves_every_mode_and_random_state_unchanged(
        self, model: SeqTrack, sequences: list[Sequence], tmp_path: Path
    ) -> None:
        """A training step after it is bit for bit that without it: dropout draws from torch's global state. The control
        shows that a moved state would be noticed."""
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        model.train()
        model.bottleneck.eval()  # a frozen component must stay in eval mode
        modes = [module.training for module in model.modules()]
        images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
        templates = torch.randn(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(2))
        tokens = torch.tensor([[65, 1, 2, 3, 4], [65, 5, 6, 7, 8]])

        def state() -> tuple[object, ...]:
            numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
            return torch.get_rng_state().tolist(), numpys, random.getstate(), torch.is_grad_enabled()

        torch.manual_seed(9)
        before = state()
        plain = model(templates, images, tokens)
        torch.manual_seed(9)
        validate(model, sequences, SETTINGS, trained_on=[])
        with pytest.raises(UserError):
            validate(model, [dataclasses.replace(sequences[0], folder=tmp_path)], SETTINGS, trained_on=[])
        assert state() == before
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(model(templates, images, tokens), plain)
        torch.manual_seed(9)
        torch.rand(1)
        assert not torch.equal(model(templates, images, tokens), plain)


class TestLeaks:
    def test_a_sequence_on_both_sides_is_refused(
        self, model: SeqTrack, sequences: list[Sequence], training_sequences: list[Sequence]
    ) -> None:
        refuse_leak(sequences, training_sequences)
        with pytest.raises(UserError, match=sequences[1].name) as caught:
            refuse_leak(sequences, [*training_sequences, sequences[1]])
        assert caught.value.code == "evaluation.leak"
        with pytest.raises(UserError) as caught:
            validate(model, sequences, SETTINGS, trained_on=sequences[:1])
        assert caught.value.code == "evaluation.leak"

    def test_the_same_frames_under_another_name_are_recognised(self, sequences: list[Sequence], tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(sequences[0].folder)
        disguised = dataclasses.replace(sequences[0], name="other-1", folder=link)
        with pytest.raises(UserError, match="other-1"):
            refuse_leak([disguised], [sequences[0]])
        refuse_leak([disguised], [sequences[1]])
