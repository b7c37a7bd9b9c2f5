"""Mistakes of a user: one clear message, exit code 2, and an unchanged output folder.

One mistake is tried as the command a user types; the others through the same `main` in a forked process.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from runs import command, environment, train, tree


@dataclass(frozen=True)
class Bad:
    """A mistake, the codes of its errors in order, and values that the messages must contain."""

    codes: tuple[str, ...]
    values: tuple[str, ...]
    keys: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    fresh: bool = False


OTHER = "run.other_experiment"
BAD = {
    "an unknown key": Bad(("config.unknown_key",), ("TRAIN.LRR", "TRAIN.LR"), keys={"TRAIN.LRR": "1e-4"}),
    "three wrong keys at once": Bad(
        ("config.unknown_key", "config.invalid_value", "config.invalid_value"),
        ("TRAIN.LRR", "MODEL.BINS", "'many'", "DATA.SEARCH.SIZE"),
        keys={"TRAIN.LRR": "1", "MODEL.BINS": "many", "DATA.SEARCH.SIZE": "-3"},
    ),
    "an unknown phase": Bad(("variable.invalid_value",), ("PHASE", "'3'"), variables={"PHASE": "3"}),
    "an epoch after the end": Bad(
        ("config.resume_epoch",), ("RESUME_EPOCH 99",), variables={"PHASE": "2", "RESUME_EPOCH": "99"}
    ),
    "an epoch that was never saved": Bad(
        ("resume.no_checkpoint",),
        ("epoch 99", "epochs 1, 2, 3"),
        variables={"PHASE": "2", "RESUME_EPOCH": "99", "EPOCHS": "100"},
    ),
    "an unknown class": Bad(("data.unknown_class",), ("buk", "disk", "tile"), variables={"CLASSES": "buk"}),
    "a missing data folder": Bad(
        ("data.no_folder",),
        ("/nowhere/at/all",),
        variables={"DATASET": "lasot", "CONFIG": "demo", "DATA_DIR": "/nowhere/at/all"},
    ),
    "another configuration's output folder": Bad(
        (OTHER,) * 3, ("TRAIN.SEED is 99", "TRAIN.LR is 0.5"), keys={"TRAIN.LR": "0.5"}, variables={"SEED": "99"}
    ),
    "another configuration's checkpoint": Bad(
        (OTHER,) * 2, ("TRAIN.SEED is 99",), variables={"SEED": "99", "PHASE": "2", "RESUME_EPOCH": "1"}
    ),
    "precision that the device lacks": Bad(
        ("device.fp16_on_cpu",), ("TRAIN.AMP",), keys={"TRAIN.AMP": "fp16"}, fresh=True
    ),
}
if not torch.cuda.is_available():
    BAD["no GPU"] = Bad(("device.no_gpu",), ("DEVICE=cuda", "DEVICE=cpu"), variables={"DEVICE": "cuda"})


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_ends_with_2_its_codes_and_nothing_written(
    name: str, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    bad = BAD[name]
    output = tmp_path if bad.fresh else uninterrupted
    before = tree(output)
    env = environment(output, demo_data, bad.keys, **bad.variables)
    ended = command("train", env=env) if name == "an unknown key" else train(env)
    assert (ended.code, ended.codes) == (2, list(bad.codes)), ended.said
    assert "Traceback" not in ended.said
    assert [value for value in bad.values if value not in ended.said] == []
    assert tree(output) == before


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
    assert ended.code == 2 and "Traceback" not in ended.said
    assert "disk-3" in ended.said and "48" in ended.said and "50" in ended.said
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
    before = tree(tmp_path / "out" / "phase_1" / "checkpoints")
    again = train(env)
    assert (again.code, tree(tmp_path / "out" / "phase_1" / "checkpoints")) == (2, before)
