"""What a user can get wrong: one clear message, exit code 2, and the output folder as it was.

One mistake and the settings without any are tried as the command a user types, in an interpreter of its own; the other
mistakes through the same `main` in a forked process, two at a time, once for all tests of this file.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from runs import Ended, command, environment, train, tree


@dataclass(frozen=True)
class Bad:
    """Something wrong, and what the message must hold."""

    says: tuple[str, ...]
    keys: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    problems: int = 1
    fresh: bool = False


BAD = {
    "an unknown key": Bad(("TRAIN.LRR", "TRAIN.LR"), keys={"TRAIN.LRR": "1e-4"}),
    "a wrong type": Bad(("TRAIN.EPOCH", "'ten'"), keys={"TRAIN.EPOCH": "ten"}),
    "three wrong keys at once": Bad(
        ("TRAIN.LRR", "MODEL.BINS", "DATA.SEARCH.SIZE"),
        keys={"TRAIN.LRR": "1", "MODEL.BINS": "many", "DATA.SEARCH.SIZE": "-3"},
        problems=3,
    ),
    "a phase that is not there": Bad(("PHASE", "'3'", "1", "2"), variables={"PHASE": "3"}),
    "an epoch after the end": Bad(("RESUME_EPOCH 99", "3 epochs"), variables={"PHASE": "2", "RESUME_EPOCH": "99"}),
    "an epoch that was never saved": Bad(
        ("no checkpoint after epoch 99", "phase_1/checkpoints holds epochs 1, 2, 3"),
        variables={"PHASE": "2", "RESUME_EPOCH": "99", "EPOCHS": "100"},
    ),
    "a class that is not there": Bad(("buk", "disk", "tile"), variables={"CLASSES": "buk"}),
    "a missing data folder": Bad(
        ("/nowhere/at/all",), variables={"DATASET": "lasot", "CONFIG": "demo", "DATA_DIR": "/nowhere/at/all"}
    ),
    "another configuration's output folder": Bad(
        ("holds a run of another configuration", "TRAIN.SEED is 99 now, 42 there", "TRAIN.LR is 0.5 now, 0.001 there"),
        keys={"TRAIN.LR": "0.5"},
        variables={"SEED": "99"},
        problems=3,
    ),
    "another configuration's checkpoint": Bad(
        ("is of another experiment", "TRAIN.SEED is 99 now, 42 there"),
        variables={"SEED": "99", "PHASE": "2", "RESUME_EPOCH": "1"},
        problems=2,
    ),
    "precision that the device lacks": Bad(("TRAIN.AMP", "bf16"), keys={"TRAIN.AMP": "fp16"}, fresh=True),
}
if not torch.cuda.is_available():
    BAD["a GPU that is not there"] = Bad(("[device.no_gpu]", "DEVICE=cuda", "DEVICE=cpu"), variables={"DEVICE": "cuda"})


@pytest.fixture(scope="module")
def answers(
    uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[object]]]:
    """For each mistake: how the command ended, and the output folder before and after."""
    base = tmp_path_factory.mktemp("bad")

    def try_one(name: str, bad: Bad) -> tuple[Ended, object, object]:
        output = base / name.replace(" ", "_").replace("'", "")
        if bad.fresh:
            output.mkdir()
        else:
            shutil.copytree(uninterrupted, output)
        before = tree(output)
        env = environment(output, demo_data, bad.keys, **bad.variables)
        ended = command("train", env=env) if name == "an unknown key" else train(env)
        return ended, before, tree(output)

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(try_one, name, bad) for name, bad in BAD.items()}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_ends_with_2_one_message_and_nothing_written(name: str, answers: dict[str, Future[object]]) -> None:
    bad = BAD[name]
    ended, before, after = answers[name].result()  # type: ignore[misc]
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    assert after == before
    errors = [line for line in ended.said.splitlines() if line.startswith("error [")]
    for words in bad.says:
        assert any(words in line for line in errors), (words, errors)
    assert len(errors) == bad.problems, errors


def test_the_same_settings_without_a_mistake_are_accepted(uninterrupted: Path, demo_data: Path) -> None:
    assert command("train", env=environment(uninterrupted, demo_data)).code == 0


def _linked(demo: Path, target: Path) -> Path:
    """A copy of the demo data set whose files can be damaged one by one."""
    shutil.copytree(demo / "demo", target / "lasot", copy_function=os.link)
    return target


def _rewrite(path: Path, data: bytes) -> None:
    path.unlink()  # a hard link: writing through it would damage the original
    path.write_bytes(data)


LASOT = {"DATASET": "lasot", "CONFIG": "demo"}


def test_boxes_and_frames_that_differ_in_number_are_refused_before_anything_is_written(
    demo_data: Path, tmp_path: Path
) -> None:
    data = _linked(demo_data, tmp_path / "data")
    boxes = data / "lasot" / "disk" / "disk-3" / "groundtruth.txt"
    _rewrite(boxes, b"".join(boxes.read_bytes().splitlines(keepends=True)[:-2]))
    ended = train(environment(tmp_path / "out", data, **LASOT))
    assert ended.code == 2
    assert "disk-3" in ended.said and "48" in ended.said and "50" in ended.said
    assert "Traceback" not in ended.said
    assert not (tmp_path / "out").exists()


def test_a_cut_frame_ends_the_run_with_2_and_its_name_and_overwrites_no_checkpoint(
    demo_data: Path, tmp_path: Path
) -> None:
    data = _linked(demo_data, tmp_path / "data")
    env = environment(tmp_path / "out", data, {"TRAIN.NUM_WORKER": "1"}, **LASOT, EPOCHS="40")
    for frame in sorted((data / "lasot" / "disk" / "disk-5" / "img").glob("*.jpg")):
        _rewrite(frame, frame.read_bytes()[: frame.stat().st_size // 2])
    ended = train(env)
    assert ended.code == 2, ended.said
    assert "disk-5/img/" in ended.said
    assert "Traceback" not in ended.said
    errors = [line for line in ended.said.splitlines() if line.startswith("error [")]
    assert errors and all("disk-5" in line or "more" in line for line in errors)
    before = tree(tmp_path / "out" / "phase_1" / "checkpoints")
    again = train(env)
    assert (again.code, tree(tmp_path / "out" / "phase_1" / "checkpoints")) == (2, before)
