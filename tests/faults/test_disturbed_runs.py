"""What can happen to a run while it continues: disks, damage, workers that die, numbers that are not finite.

A run that broke ends with exit code 1 and its cause, without a traceback, and leaves every older checkpoint as it was.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Ended, Running, assert_same_run, completed, environment, epochs, start, train, tree


def _sums(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "checkpoints").glob("SEQTRACK_*"))}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(disk: Path, *, leave: int) -> None:
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - leave))


def _run_and_fill(env: dict[str, str], disk: Path, *, leave: int) -> Ended:
    """Start a run and fill its disk once it has a checkpoint; again where the run was over before that."""
    for _ in range(5):
        with start(env) as running:
            assert running.until(lambda: (disk / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json").exists())
            running.signal(signal.SIGSTOP)  # it writes too, and the last free page must be the filler's
            _fill(disk, leave=leave)
            running.signal(signal.SIGCONT)
            ended = running.end()
        if ended.code != 0:
            break
        (disk / "filler").unlink()
        shutil.rmtree(disk / "phase_1")
    return ended


@pytest.mark.parametrize("leave", [0, 400_000, 9_000_000], ids=["nothing left", "half a checkpoint", "one more only"])
def test_a_disk_that_fills_up_ends_the_run_with_its_cause_and_older_checkpoints_stay(
    leave: int, disk: Path, uninterrupted: Path, demo_data: Path
) -> None:
    env = environment(disk, demo_data, EPOCHS=3 if leave == 0 else 20)
    ended = _run_and_fill(env, disk, leave=leave)
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said and "Logging error" not in ended.said
    assert "No space left" in ended.said or "MB free" in ended.said
    assert "make room" in ended.said
    kept = _sums(disk / "phase_1")
    assert "SEQTRACK_ep0001.safetensors" in kept
    assert (
        kept["SEQTRACK_ep0001.safetensors"] == _sums(uninterrupted / "phase_1")["SEQTRACK_ep0001.safetensors"]
        or leave != 0
    )
    assert not list((disk / "phase_1").rglob(".*.tmp"))
    if leave == 0:
        (disk / "filler").unlink()
        completed(env)
        assert_same_run(disk / "phase_1", uninterrupted / "phase_1")


def test_a_read_only_output_folder_is_refused_with_2(disk: Path, demo_data: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = train(environment(disk / "out", demo_data))
    assert ended.code == 2, ended.said
    assert "cannot be written (Read-only file system" in ended.said
    assert "Traceback" not in ended.said


def test_a_finished_run_in_a_read_only_folder_still_says_so(disk: Path, uninterrupted: Path, demo_data: Path) -> None:
    shutil.copytree(uninterrupted / "phase_1", disk / "phase_1")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "there is nothing to do" in completed(environment(disk, demo_data)).said


def _one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "suffix"),
    [(_one_bit, "safetensors"), (_empty, "safetensors"), (_cut, "json")],
    ids=["a bit", "empty", "a cut manifest"],
)
def test_a_run_whose_latest_checkpoint_is_damaged_continues_from_the_one_before(
    damage: object, suffix: str, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted / "phase_1", tmp_path / "phase_1")
    damage(tmp_path / "phase_1" / "checkpoints" / f"SEQTRACK_ep0003.{suffix}")  # type: ignore[operator]
    before = _sums(tmp_path / "phase_1")
    ended = completed(environment(tmp_path, demo_data))
    assert "skipped" in ended.said and "SEQTRACK_ep0003" in ended.said
    assert "skipped" in next((tmp_path / "phase_1" / "logs").glob("*.log")).read_text()
    assert "resumes after step 12 (epoch 2" in ended.said
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")
    (aside,) = (tmp_path / "phase_1" / "checkpoints" / "superseded").iterdir()
    assert {name: (aside / name).read_bytes() for name in before if "ep0003" in name} == {
        name: data for name, data in before.items() if "ep0003" in name
    }, "the damaged one is not overwritten either"


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    other = {"MODEL.DECODER.DEC_LAYERS": "2"}
    completed(environment(tmp_path, demo_data, other, EPOCHS=2))
    foreign = epochs(tmp_path / "phase_1")[1]
    theirs = shutil.copytree(uninterrupted / "phase_1", tmp_path / "mine" / "phase_1") / "checkpoints"
    for path in theirs.glob("SEQTRACK_ep000[23]*"):
        path.unlink()
    shutil.copy(foreign.path, theirs)
    shutil.copy(foreign.manifest_path, theirs)
    before = tree(tmp_path / "mine")
    ended = train(environment(tmp_path / "mine", demo_data))
    assert ended.code == 2, ended.said
    assert "is of another experiment" in ended.said
    assert "MODEL.DECODER.DEC_LAYERS is 1 now, 2 there" in ended.said
    assert tree(tmp_path / "mine") == before


def test_a_restart_from_an_earlier_epoch_moves_the_later_ones_aside_and_ends_the_same(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted / "phase_1", tmp_path / "phase_1")
    ended = completed(environment(tmp_path, demo_data, RESUME_EPOCH=1))
    assert ended.said.count("moved aside") == 4
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")
    (aside,) = (tmp_path / "phase_1" / "checkpoints" / "superseded").iterdir()
    for path in aside.glob("*.safetensors"):
        assert path.read_bytes() == (uninterrupted / "phase_1" / "checkpoints" / path.name).read_bytes()
    assert len(list(aside.glob("*.safetensors"))) == 2


def test_checkpoints_without_their_runs_record_are_not_trained_over(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted / "phase_1", tmp_path / "phase_1")
    (tmp_path / "phase_1" / "run.json").unlink()
    before = tree(tmp_path)
    ended = train(environment(tmp_path, demo_data))
    assert ended.code == 2
    assert "run.json is missing: set RESUME_EPOCH to one of epochs 1, 2, 3" in ended.said
    assert tree(tmp_path) == before


def test_only_as_many_checkpoints_stay_as_asked_for(demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {"TRAIN.KEEP_CHECKPOINTS": "1", "TRAIN.SAVE_INTERVAL_S": "0.02"}))
    kept = epochs(tmp_path / "phase_1")
    assert 3 in kept and len(kept) <= 2, "the newest, and the best if that is another"
    assert not list((tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_step*"))


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_spoils_no_checkpoint(
    demo_data: Path, tmp_path: Path
) -> None:
    keys = {
        "TRAIN.LR": "10",
        "TRAIN.GRAD_CLIP_NORM": "0",
        "TRAIN.SAVE_INTERVAL_S": "0.01",
        "TRAIN.WEIGHT_DECAY": "10",
    }
    ended = train(environment(tmp_path, demo_data, keys, EPOCHS=30))
    assert ended.code == 1, ended.said
    assert re.search(r"at step \d+ \(epoch \d+, samples \d+\.\.\d+ of this rank\)", ended.said), ended.said
    assert "lower TRAIN.LR" in ended.said
    assert "Traceback" not in ended.said
    from seqtrack.checkpoints.store import list_checkpoints, load_weights

    for manifest in list_checkpoints(tmp_path / "phase_1" / "checkpoints"):
        assert all(bool(weight.isfinite().all()) for weight in load_weights(manifest).values()), manifest.file


def test_a_dead_loader_worker_ends_the_run_with_1_and_the_next_start_continues(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, {"TRAIN.NUM_WORKER": "1"})
    with start(env) as running:
        assert running.until(lambda: "Epoch 2 : 16" in running.said())
        for child in _children(running):
            os.kill(child, signal.SIGKILL)
        ended = running.end()
    assert ended.code == 1, ended.said
    assert "error [loader.worker_died]" in ended.said and "SIGKILL" in ended.said
    assert "Traceback" not in ended.said
    completed(env)
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")


def _children(running: Running) -> list[int]:
    return [
        int(word)
        for task in Path(f"/proc/{running.process.pid}/task").iterdir()
        for word in (task / "children").read_text().split()
    ]


def test_an_unusual_setting_is_warned_of_at_the_start_and_in_the_log_file(demo_data: Path, tmp_path: Path) -> None:
    keys = {"DATA.SEARCH.CENTER_JITTER": "4.5"}
    said = completed(environment(tmp_path, demo_data, keys, EPOCHS=1)).said
    log = next((tmp_path / "phase_1" / "logs").glob("*.log")).read_text()
    for text in (said, log):
        assert 0 <= text.find("DATA.SEARCH.CENTER_JITTER") < text.index("Epoch 1 :")


def test_sampling_as_usual_warns_of_nothing(uninterrupted: Path) -> None:
    log = next((uninterrupted / "phase_1" / "logs").glob("*.log")).read_text()
    assert "WARNING" not in log and "DATA.SEARCH.CENTER_JITTER" not in log


def test_what_a_run_writes_says_how_it_began_and_what_it_promises(uninterrupted: Path) -> None:
    record = json.loads((uninterrupted / "phase_1" / "run.json").read_text())
    assert record["state"] == "complete"
    (began,) = record["starts"]
    assert began["promise"] == "bit-equal"
    assert began["fingerprint"]["world"] == 1
