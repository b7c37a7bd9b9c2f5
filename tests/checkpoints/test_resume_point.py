"""The resume point follows from what the folders hold, and nothing in them is overwritten."""

import json
from pathlib import Path

import pytest

from checkpoints.test_damage import DESCRIBE, write_small
from seqtrack.checkpoints.resume_point import ResumePoint, find_resume_point, hold_run_dir, write_run
from seqtrack.checkpoints.safetensors_io import TensorBytes
from seqtrack.checkpoints.side_files import RunRecord
from seqtrack.checkpoints.store import (
    Manifest,
    checkpoints_to_delete,
    list_checkpoints,
    remove_checkpoint,
    write_checkpoint,
)
from seqtrack.errors import UserError
from seqtrack.run_dir import step_name


def _run(folder: Path, epochs: int, state: str | None = None) -> list[Manifest]:
    """A run's folder with that many epochs' checkpoints, and with the record of a run of five if it has a state."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "logs").mkdir()
    if state is not None:
        values = {
            "state": state, "phase": 1, "config": "demo", "resume_epoch": None, "epochs": 5, "config_digest": "0" * 64,
            "data_digest": "1" * 64, "starts": [], "started": "", "updated": "",
        }  # fmt: skip
        record = RunRecord.model_validate(values)
        write_run(folder, record, record.state)
    return [write_small(folder / "checkpoints", epoch) for epoch in range(1, epochs + 1)]


def _inside(folder: Path, epoch: int, step: int) -> Manifest:
    """A checkpoint inside an epoch."""
    facts = {"epoch": epoch, "step": step, "sample": 16}
    path = folder / "checkpoints" / step_name(step)
    describe = {**DESCRIBE, **facts, "kind": "step", "loss": 1.0, "iou": 0.5}
    return write_checkpoint(path, {}, {**facts, "model": {}}, describe=describe)


def _imported(folder: Path, epoch: int) -> Manifest:
    facts = {"kind": "imported", "epoch": epoch, "step": 0, "sample": 0, "loss": None, "iou": None}
    weights = {"model/weight": TensorBytes("F32", (1,), bytearray(4))}
    path = folder / "checkpoints" / f"SEQTRACK_ep{epoch:04d}.safetensors"
    return write_checkpoint(path, weights, {}, describe={**DESCRIBE, **facts})


def _prepare(folder: Path, start: ResumePoint) -> None:
    with hold_run_dir(folder, start):
        pass


def _find(folder: Path, epoch: int | None = None, *, epochs: int = 5) -> ResumePoint:
    return find_resume_point(folder, resume_epoch=epoch, epochs=epochs)


def _refused(folder: Path, epoch: int | None = None, *, epochs: int = 5) -> UserError:
    with pytest.raises(UserError) as refusal:
        _find(folder, epoch, epochs=epochs)
    return refusal.value


def test_an_empty_place_starts_from_scratch_an_unfinished_run_continues_and_one_without_record_is_refused(
    tmp_path: Path,
) -> None:
    assert _find(tmp_path) == ResumePoint(None)
    assert list(tmp_path.iterdir()) == [], "deciding changes nothing"
    manifests = _run(tmp_path, 2, state="running")
    inside = _inside(tmp_path, 3, 25)
    assert _find(tmp_path).manifest == inside
    (tmp_path / "run.json").unlink()
    refusal = _refused(tmp_path)
    assert refusal.code == "start.no_record" and "epochs 1, 2" in str(refusal)
    assert _find(tmp_path, 2).manifest == manifests[1]


def test_a_finished_run_is_finished_unless_its_end_was_damaged_or_more_epochs_are_asked_for(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 5, state="complete")
    assert _find(tmp_path).finished
    assert _find(tmp_path, epochs=8) == ResumePoint(manifests[-1])
    manifests[-1].path.write_bytes(b"")
    assert _find(tmp_path) == ResumePoint(manifests[-2])
    for manifest in manifests:
        remove_checkpoint(manifest)
    assert _find(tmp_path).finished, "its checkpoints were moved away"
    assert _refused(tmp_path, epochs=8).code == "start.nothing_to_extend"


def test_an_epoch_is_searched_here_then_in_other_folders_then_remotely(tmp_path: Path) -> None:
    here, there = _run(tmp_path / "phase_2", 1, state="running"), _run(tmp_path / "phase_1", 2, state="complete")
    far = write_small(tmp_path, 3)
    asked: list[int] = []

    def fetch(epoch: int) -> Manifest | None:
        asked.append(epoch)
        return far if epoch == 3 else None

    def find(epoch: int) -> Manifest | None:
        places = [tmp_path / "phase_1"]
        start = find_resume_point(tmp_path / "phase_2", resume_epoch=epoch, epochs=5, elsewhere=places, fetch=fetch)
        return start.manifest

    assert find(1) == here[0] and find(1).path == here[0].path  # type: ignore[union-attr]
    assert find(2) == there[1]
    assert asked == [], "what is on this disk is not fetched"
    assert find(3) == far
    there[1].path.write_bytes(b"damaged")
    with pytest.raises(UserError) as refusal:
        find(2)
    assert [problem.code for problem in refusal.value.problems] == ["resume.no_checkpoint", "checkpoint.damaged"]
    assert asked == [3, 2], "and a damaged one is fetched, if it can be"


def test_a_missing_epoch_is_refused_with_what_was_found_and_why_it_was_skipped(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 4)
    assert "epochs 1, 2, 3, 4" in _refused(tmp_path, 7).problems[0]
    manifests[0].path.write_bytes(bytes(manifests[0].bytes))
    manifests[1].manifest_path.write_text("{")
    manifests[3].manifest_path.unlink()
    first, *others = _refused(tmp_path, 1).problems
    assert first.code == "resume.no_checkpoint" and "RESUME_EPOCH=3" in first
    assert [problem.code for problem in others] == ["checkpoint.manifest", "checkpoint.missing", "file.unknown"]
    imported = _imported(tmp_path, 1)
    refusal = _refused(tmp_path, 1)
    assert refusal.problems[1].code == "resume.imported" and str(imported.path) in refusal.problems[1]


def test_what_comes_after_the_start_is_moved_aside_and_nothing_of_it_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifests = _run(tmp_path, 4, state="complete")
    inside, imported = _inside(tmp_path, 3, 25), _imported(tmp_path, 5)
    manifests[3].manifest_path.write_text("{")  # damaged ones as well
    write_small(tmp_path / "checkpoints", 6).manifest_path.unlink()  # a kill between the two files
    (tmp_path / "logs" / "metrics.jsonl").write_text('{"step": 40}\n')
    folder = tmp_path / "checkpoints"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    start = _find(tmp_path, 2)
    assert start.manifest == manifests[1]
    _prepare(tmp_path, start)
    assert [item.epoch for item in list_checkpoints(folder)] == [1, 2]
    (aside,) = (folder / "superseded").iterdir()
    after = {path.name: path.read_bytes() for path in [*folder.glob("*.*"), *aside.iterdir()]}
    assert after == {**before, "metrics.jsonl": b'{"step": 40}\n'}
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all(any(str(item.path) in text for text in warned) for item in (inside, imported))
    _prepare(tmp_path, start)
    assert len(list((folder / "superseded").iterdir())) == 1, "nothing left to move, no new folder"


def test_leftovers_of_a_kill_are_removed_and_a_start_inside_an_epoch_moves_that_epochs_own_end(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 2, state="running")
    inside = _inside(tmp_path, 2, 15)
    for name in ("checkpoints/.SEQTRACK_ep0002.safetensors.77.tmp", "logs/.metrics.jsonl.x.tmp", ".run.json.x.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    _prepare(tmp_path, ResumePoint(inside))
    assert list_checkpoints(tmp_path / "checkpoints") == [manifests[0], inside]
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    files = {name for item in (*manifests, inside) for name in (item.file, item.manifest_path.name)}
    assert left == {"run.json", ".lock", "notes.txt", *files}


WRONG: list[tuple[str, object]] = [
    ("format", "another/9"), ("epochs", 1e3), ("epochs", True), ("state", "over"), ("starts", [5]), ("unheard_of", 1),
    ("", b""), ("", b"[" * 100_000), ("", b'{"epochs": NaN}'), ("", b"\xff\xfe{\x00"),
]  # fmt: skip


def test_an_invalid_record_is_refused_with_file_and_field_and_not_ignored(tmp_path: Path) -> None:
    _run(tmp_path, 5, state="complete")
    path = tmp_path / "run.json"
    good = json.loads(path.read_text())
    for field, value in WRONG:
        path.write_bytes(value if isinstance(value, bytes) else json.dumps({**good, field: value}).encode())
        (problem,) = _refused(tmp_path).problems
        assert problem.code == "side_file.invalid" and str(path) in problem and f" {field}" in problem
    path.unlink()
    path.mkdir()
    assert _refused(tmp_path).code == "side_file.invalid"


def test_a_checkpoint_is_deleted_only_when_a_newer_one_or_a_verified_copy_makes_it_needless(tmp_path: Path) -> None:
    manifests = _run(tmp_path, 5)

    def going(keep: int, *, safe: set[int]) -> list[int]:
        gone = checkpoints_to_delete(manifests, keep=keep, is_safe=lambda item: item.epoch in safe)
        return [item.step for item in gone]

    every = {1, 2, 3, 4, 5}
    assert going(0, safe=every) == [], "all are kept by default"
    assert going(2, safe=every) == [10, 20, 30]
    assert going(2, safe={2}) == [20], "what is not verified elsewhere is kept"
    manifests[0] = manifests[0].model_copy(update={"iou": 0.99})
    assert going(2, safe=every) == [20, 30], "the best is kept"
    _inside(tmp_path, 6, 55)
    _inside(tmp_path, 6, 57)
    manifests = list_checkpoints(tmp_path / "checkpoints")
    assert going(0, safe=set()) == [55], "inside an epoch only the newest is kept"
