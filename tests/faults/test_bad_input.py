"""Mistakes of a user: one clear message, exit code 2, and an unchanged output folder.

One mistake is tried as the command a user types; the others through the same `main` in a forked process.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from runs import command, completed, environment, epochs, train, tree


class Bad(NamedTuple):
    """A mistake by its configuration keys and variables, the codes of its errors, and values in the messages."""

    codes: list[str]
    values: list[str]
    keys: dict[str, str]
    variables: dict[str, str]


OTHER = "run.other_experiment"
RESUME = {"PHASE": "2", "RESUME_EPOCH": "99"}
BAD = {
    "an unknown key": Bad(["config.unknown_key"], ["TRAIN.LRR", "TRAIN.LR"], {"TRAIN.LRR": "1e-4"}, {}),
    "an epoch after the end": Bad(["config.resume_epoch"], ["RESUME_EPOCH 99"], {}, RESUME),
    "an epoch that was never saved": Bad(
        ["resume.no_checkpoint"], ["epoch 99", "epochs 1, 2, 3"], {}, {**RESUME, "EPOCHS": "100"}
    ),
    "a missing data folder": Bad(
        ["data.no_folder", "data.no_classes"],
        ["/nowhere"],
        {},
        {"DATASET": "lasot", "CONFIG": "demo", "DATA_DIR": "/nowhere"},
    ),
    "a repository without a token": Bad(["token.missing"], ["me/tracker"], {}, {"HF_REPO": "me/tracker"}),
    "a token file that is missing": Bad(
        ["token.unreadable"], ["/nowhere/token"], {}, {"HF_REPO": "me/tracker", "HF_TOKEN_PATH": "/nowhere/token"}
    ),
    "another configuration's output folder": Bad(
        [OTHER] * 3, ["TRAIN.SEED is 99", "TRAIN.LR is 0.5"], {"TRAIN.LR": "0.5"}, {"SEED": "99"}
    ),
    "another configuration's checkpoint": Bad(
        [OTHER] * 2, ["TRAIN.SEED is 99"], {}, {"SEED": "99", "PHASE": "2", "RESUME_EPOCH": "1"}
    ),
    "precision that the device lacks": Bad(["device.fp16_on_cpu"], ["TRAIN.AMP"], {"TRAIN.AMP": "fp16"}, {}),
}
if not torch.cuda.is_available():
    BAD["no GPU"] = Bad(["device.no_gpu"], ["DEVICE=cuda", "DEVICE=cpu"], {}, {"DEVICE": "cuda"})


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_ends_with_2_its_codes_and_nothing_written(
    name: str, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    bad = BAD[name]
    output = tmp_path if name.startswith("precision") else uninterrupted
    before = tree(output)
    env = environment(output, demo_data, bad.keys, **bad.variables)
    ended = command("train", env=env) if name == "an unknown key" else train(env)
    assert (ended.code, ended.codes) == (2, bad.codes), ended.said
    assert "Traceback" not in ended.said
    assert [value for value in bad.values if value not in ended.said] == []
    assert tree(output) == before


def test_a_checkpoint_of_another_model_in_a_runs_folder_is_refused_with_the_differences(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    completed(environment(tmp_path, demo_data, {"MODEL.DECODER.DEC_LAYERS": "2"}, EPOCHS=2))
    foreign = epochs(tmp_path / "phase_1")[1]
    theirs = shutil.copytree(uninterrupted / "phase_1", tmp_path / "mine" / "phase_1") / "checkpoints"
    for path in theirs.glob("SEQTRACK_ep000[23]*"):
        path.unlink()
    shutil.copy(foreign.path, theirs)
    shutil.copy(foreign.manifest_path, theirs)
    before = tree(tmp_path / "mine")
    ended = train(environment(tmp_path / "mine", demo_data))
    assert ended.code == 2 and set(ended.codes) == {OTHER}, ended.said
    assert "MODEL.DECODER.DEC_LAYERS" in ended.said
    assert tree(tmp_path / "mine") == before


def truncate_frames(demo: Path, target: Path, sequence: str) -> None:
    """A copy of the demo data set in `target`, with the frames of one sequence cut in the middle."""
    shutil.copytree(demo, target, copy_function=os.link)
    for frame in (target / sequence.split("-")[0] / sequence / "img").glob("*.jpg"):
        whole = frame.read_bytes()
        frame.unlink()  # a hard link: writing through it would damage the original
        frame.write_bytes(whole[: len(whole) // 2])


def test_a_cut_frame_ends_the_run_with_2_and_its_name_and_overwrites_no_checkpoint(
    demo_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    truncate_frames(demo_data / "demo", data / "lasot", "disk-5")
    lasot = {"DATASET": "lasot", "CONFIG": "demo"}
    env = environment(tmp_path / "out", data, {"TRAIN.NUM_WORKER": "1"}, **lasot, EPOCHS="40")
    trees = []
    for _ in range(2):
        ended = train(env)
        assert ended.code == 2 and "disk-5/img/" in ended.said and "Traceback" not in ended.said, ended.said
        trees.append(tree(tmp_path / "out" / "phase_1" / "checkpoints"))
    assert trees[0] == trees[1]
