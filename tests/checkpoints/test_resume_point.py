"""The resume point follows from what the folders hold, and nothing in them is overwritten."""

import json
from pathlib import Path

import pytest

from checkpoints.test_damage import DESCRIBE, write_small
from seqtrack.checkpoints.resume_point import ResumePoint, find_resume_point, lock_run_dir, prepare_folder, write_run
from seqtrack.checkpoints.retention import checkpoints_to_delete
from seqtrack.checkpoints.safetensors_io import TensorBytes
from seqtrack.checkpoints.side_files import RunRecord
from seqtrack.checkpoints.store import Manifest, list_checkpoints, write_checkpoint
from seqtrack.errors import UserError
from seqtrack.run_dir import step_name


def _record(state: str) -> RunRecord:
    """The record of a run of five epochs."""
    values = {
        "state": state, "phase": 1, "config": "demo", "resume_epoch": None, "epochs": 5, "config_digest": "0" * 64,
        "data_digest": "1" * 64, "starts": [], "started": "", "updated": "",
    }  # fmt: skip
    return RunRecord.model_validate(values)


def _run(folder: Path, epochs: int, state: str | None = None) -> list[Manifest]:
    """A run's folder with that many epochs' checkpoints, and with its record if it has a state."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "logs").mkdir()
    if state is not None:
        write_run(folder, _record(state))
    return [write_small(folder / "checkpoints", epoch) for epoch in range(1, epochs + 1)]


def _inside(folder: Path, epoch: int, step: int) -> Manifest:
    """A checkpoint inside an epoch."""
    facts = {"epoch": epoch, "step": step, "sample": 16}
    return write_checkpoint(
        folder / "checkpoints" / step_name(step),
        {},
        {**facts, "model": {}},
        describe={**DESCRIBE, **facts, "kind": "step", "loss": 1.0, "iou": 0.5},
    )


def test_an_empty_place_starts_from_scratch(tmp_path: Path) -> None:
    assert find_resume_point(tmp_path / "phase_1", resume_epoch=None, epochs=5) == ResumePoint(None)
    assert list(tmp_path.iterdir()) == [], "deciding changes nothing"


def test_an_unfinished_run_continues_from_its_latest_checkpoint(tmp_path: Path) -> None:
    _run(tmp_path, 2, state="running")
    inside = _inside(tmp_path, 3, 25)
    assert find_resume_point(tmp_path, resume_epoch=None, epochs=5).manifest == inside


def test_a_finished_run_is_finished(tmp_path: Path) -> None:
    _run(tmp_path, 5, state="complete")
    assert find_resume_point(tmp_path, resume_epoch=None, epochs=5).finished


def test_a_finished_run_whose_last_checkpoint_was_damaged_since_trains_its_end_again(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 5, state="complete")
    manifests[-1].path.write_bytes(b"")
    start = find_resume_point(tmp_path, resume_epoch=None, epochs=5)
    assert not start.finished
    assert start.manifest == manifests[-2]


def test_a_finished_run_whose_checkpoints_were_moved_away_stays_finished(tmp_path: Path) -> None:
    for manifest in _run(tmp_path, 5, state="complete"):
        manifest.path.unlink()
        manifest.manifest_path.unlink()
    assert find_resume_point(tmp_path, resume_epoch=None, epochs=5).finished


def test_checkpoints_without_a_run_record_are_refused_with_their_epochs(tmp_path: Path) -> None:
    _run(tmp_path, 2)
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=None, epochs=5)
    assert refusal.value.code == "start.no_record" and "epochs 1, 2" in str(refusal.value)
    start = find_resume_point(tmp_path, resume_epoch=2, epochs=5)
    assert start.manifest is not None and start.manifest.epoch == 2


def test_a_missing_epoch_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    _run(tmp_path / "phase_1", 2, state="complete")
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path / "phase_2", resume_epoch=4, epochs=5, elsewhere=[tmp_path / "phase_1"])
    assert refusal.value.code == "resume.no_checkpoint"
    assert "epoch 4" in str(refusal.value) and "epochs 1, 2" in str(refusal.value)


def test_an_epoch_is_searched_here_then_in_other_folders_then_remotely(tmp_path: Path) -> None:
    here, there = _run(tmp_path / "phase_2", 1, state="running"), _run(tmp_path / "phase_1", 2, state="complete")
    far = write_small(tmp_path, 3)
    asked: list[int] = []

    def fetch(epoch: int) -> Manifest | None:
        asked.append(epoch)
        return far if epoch == 3 else None

    def find(epoch: int) -> Manifest | None:
        places = [tmp_path / "phase_1"]
        return find_resume_point(
            tmp_path / "phase_2", resume_epoch=epoch, epochs=5, elsewhere=places, fetch=fetch
        ).manifest

    assert find(1) == here[0] and find(1).folder == here[0].folder  # type: ignore[union-attr]
    assert find(2) == there[1]
    assert asked == [], "what is on this disk is not fetched"
    assert find(3) == far
    there[1].path.write_bytes(b"damaged")
    with pytest.raises(UserError) as refusal:
        find(2)
    assert [problem.code for problem in refusal.value.problems] == ["resume.no_checkpoint", "checkpoint.damaged"]
    assert asked == [3, 2], "and a damaged one is fetched, if it can be"


def test_what_comes_after_the_start_is_moved_aside_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 4, state="complete")
    inside = _inside(tmp_path, 3, 25)
    (tmp_path / "logs" / "metrics.jsonl").write_text('{"step": 40}\n')
    kept = {manifest.path.name: manifest.path.read_bytes() for manifest in [*manifests, inside]}
    start = find_resume_point(tmp_path, resume_epoch=2, epochs=5)
    assert start.manifest == manifests[1]
    prepare_folder(tmp_path, start)
    assert [item.epoch for item in list_checkpoints(tmp_path / "checkpoints")] == [1, 2]
    (aside,) = (tmp_path / "checkpoints" / "superseded").iterdir()
    assert {item.file for item in list_checkpoints(aside)} == {*list(kept)[2:4], inside.file}
    assert all(path.read_bytes() == kept[path.name] for path in aside.glob("*.safetensors"))
    assert (aside / "metrics.jsonl").read_text() == '{"step": 40}\n'
    prepare_folder(tmp_path, start)
    assert len(list((tmp_path / "checkpoints" / "superseded").iterdir())) == 1, "nothing left to move, no new folder"


def test_a_damaged_latest_checkpoint_is_moved_aside_not_overwritten(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 3, state="running")
    manifests[2].manifest_path.write_text("{")
    bytes_before = manifests[2].path.read_bytes()
    start = find_resume_point(tmp_path, resume_epoch=None, epochs=5)
    assert start.manifest == manifests[1]
    prepare_folder(tmp_path, start)
    (aside,) = (tmp_path / "checkpoints" / "superseded").iterdir()
    assert (aside / manifests[2].file).read_bytes() == bytes_before
    assert (aside / manifests[2].manifest_path.name).read_text() == "{"


def test_a_start_inside_an_epoch_moves_that_epochs_own_end_aside(tmp_path: Path) -> None:
    _run(tmp_path, 3, state="running")
    inside = _inside(tmp_path, 3, 25)
    prepare_folder(tmp_path, ResumePoint(inside))
    assert [item.file for item in list_checkpoints(tmp_path / "checkpoints")] == [
        "SEQTRACK_ep0001.safetensors",
        "SEQTRACK_ep0002.safetensors",
        inside.file,
    ]


def test_leftovers_of_a_kill_are_removed_and_other_files_are_not(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 1, state="running")
    for name in (".SEQTRACK_ep0002.safetensors.77.tmp", ".SEQTRACK_ep0002.json.x.tmp", "SEQTRACK_ep0002.safetensors"):
        (tmp_path / "checkpoints" / name).write_bytes(b"half")
    (tmp_path / "logs" / ".metrics.jsonl.x.tmp").write_bytes(b"half")
    notes = tmp_path / "checkpoints" / "notes.txt"
    notes.write_text("mine")
    prepare_folder(tmp_path, find_resume_point(tmp_path, resume_epoch=None, epochs=5))
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run.json", manifests[0].file, manifests[0].manifest_path.name, "notes.txt"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "another/9"), ("epochs", "x"), ("epochs", 1e3), ("epochs", True), ("epochs", 0), ("state", "over"),
        ("starts", {}), ("starts", [5]), ("config_digest", "0" * 63), ("unheard_of", 1),
    ],
)  # fmt: skip
def test_a_record_with_a_wrong_field_is_refused_with_file_and_field(tmp_path: Path, field: str, value: object) -> None:
    _run(tmp_path, 5, state="complete")
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, field: value}))
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=None, epochs=5)
    problem = refusal.value.problems[0]
    assert problem.code == "side_file.invalid"
    assert str(tmp_path / "run.json") in problem and f" {field}" in problem


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"epochs": NaN}',
        b'{"epochs": 1, "epochs": 2}',
        b"1" * 10_000,
        b"\xff\xfe{\x00}\x00",
    ],
    ids=range(7),
)
def test_a_file_that_is_no_record_is_refused_not_ignored(tmp_path: Path, text: bytes) -> None:
    _run(tmp_path, 1, state="running")
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=None, epochs=5)
    assert refusal.value.code == "side_file.invalid"


def test_a_folder_in_the_place_of_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=None, epochs=5)
    assert refusal.value.code == "side_file.invalid"


def test_a_finished_run_continues_where_more_epochs_are_asked_for(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 5, state="complete")
    start = find_resume_point(tmp_path, resume_epoch=None, epochs=8)
    assert start == ResumePoint(manifests[-1])


def test_a_finished_run_without_checkpoints_cannot_continue_and_does_not_begin_again(tmp_path: Path) -> None:
    for manifest in _run(tmp_path, 5, state="complete"):
        manifest.path.unlink()
        manifest.manifest_path.unlink()
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=None, epochs=8)
    assert refusal.value.code == "start.nothing_to_extend"


def test_a_folder_is_locked_against_another_run_until_it_is_released(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path), pytest.raises(UserError) as refusal, lock_run_dir(tmp_path):
        pass
    assert refusal.value.code == "start.folder_in_use"
    with lock_run_dir(tmp_path):
        pass


def _always(_: Manifest) -> bool:
    return True


def test_all_checkpoints_are_kept_by_default(tmp_path: Path) -> None:
    assert checkpoints_to_delete(_run(tmp_path, 4), keep=0, is_safe=_always) == []


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 5)
    best = min(manifests, key=lambda item: item.epoch)
    assert [item.epoch for item in checkpoints_to_delete(manifests, keep=2, is_safe=_always)] == [1, 2, 3]

    manifests[0] = best.model_copy(update={"iou": 0.99})
    assert [item.epoch for item in checkpoints_to_delete(manifests, keep=2, is_safe=_always)] == [2, 3]


def test_what_is_not_verified_elsewhere_is_kept(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 5)
    safe = {manifests[1].sha256}
    going = checkpoints_to_delete(manifests, keep=2, is_safe=lambda item: item.sha256 in safe)
    assert [item.epoch for item in going] == [2]


def test_a_checkpoint_inside_an_epoch_goes_when_a_newer_one_is(tmp_path: Path) -> None:
    _run(tmp_path, 2)
    old, newest = _inside(tmp_path, 3, 25), _inside(tmp_path, 3, 27)
    present = list_checkpoints(tmp_path / "checkpoints")
    assert checkpoints_to_delete(present, keep=0, is_safe=lambda _: False) == [old]
    assert newest not in checkpoints_to_delete(present, keep=1, is_safe=_always)


def _imported(folder: Path, epoch: int) -> Manifest:
    facts = {"kind": "imported", "epoch": epoch, "step": 0, "sample": 0, "loss": None, "iou": None}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    weights = {"model/weight": TensorBytes("F32", (1,), memoryview(bytes(4)))}
    path = folder / "checkpoints" / f"SEQTRACK_ep{epoch:04d}.safetensors"
    return write_checkpoint(path, weights, {}, describe={**DESCRIBE, **facts})


def test_imported_weights_cannot_be_resumed_from(tmp_path: Path) -> None:
    imported = _imported(tmp_path, 1)
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=1, epochs=5)
    assert [problem.code for problem in refusal.value.problems] == ["resume.no_checkpoint", "resume.imported"]
    assert str(imported.path) in refusal.value.problems[1]


def test_every_file_that_was_skipped_is_named_with_its_reason_and_the_latest_valid_one_is_offered(
    tmp_path: Path,
) -> None:
    manifests = _run(tmp_path, 4)
    manifests[0].path.write_bytes(b"damaged")
    manifests[1].manifest_path.write_text("{")
    manifests[3].manifest_path.unlink()
    with pytest.raises(UserError) as refusal:
        find_resume_point(tmp_path, resume_epoch=1, epochs=5)
    first, *others = refusal.value.problems
    assert first.code == "resume.no_checkpoint"
    assert "RESUME_EPOCH=3" in first
    assert [problem.code for problem in others] == ["file.json", "checkpoint.missing", "checkpoint.damaged"]


def test_imported_weights_are_warned_of_before_they_are_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run(tmp_path, 1, state="running")
    imported = [_imported(tmp_path, epoch) for epoch in (2, 3)]
    prepare_folder(tmp_path, find_resume_point(tmp_path, resume_epoch=None, epochs=5))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [str(item.path) in text for item, text in zip(imported, warned, strict=True)] == [True, True]
    (aside,) = (tmp_path / "checkpoints" / "superseded").iterdir()
    assert {item.file for item in list_checkpoints(aside)} == {item.file for item in imported}
