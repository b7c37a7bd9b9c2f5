"""Mistakes of a user: one clear message, exit code 2, and an unchanged output folder.

One mistake is tried as the command a user types; the others through the same `main` in a forked process.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from runs import command, completed, environment, epochs, train, tree

OTHER = "run.other_experiment"
RESUME = {"PHASE": "2", "RESUME_EPOCH": "99"}
NOWHERE = {"DATASET": "lasot", "CONFIG": "demo", "DATA_DIR": "/nowhere"}
TOKEN_FILE = {"HF_REPO": "me/tracker", "HF_TOKEN_PATH": "/nowhere/token"}
# By its configuration keys and variables: the codes of its errors, and values in the messages.
BAD: dict[str, tuple[list[str], list[str], dict[str, str], dict[str, str]]] = {
    "an unknown key": (["config.unknown_key"], ["TRAIN.LRR", "TRAIN.LR"], {"TRAIN.LRR": "1e-4"}, {}),
    "an epoch after the end": (["config.resume_epoch"], ["RESUME_EPOCH 99"], {}, RESUME),
    "no such epoch": (["resume.no_checkpoint"], ["epoch 99", "epochs 1, 2, 3"], {}, {**RESUME, "EPOCHS": "100"}),
    "a missing data folder": (["data.no_folder", "data.no_classes"], ["/nowhere"], {}, NOWHERE),
    "a repository without a token": (["token.missing"], ["me/tracker"], {}, {"HF_REPO": "me/tracker"}),
    "a missing token file": (["token.unreadable"], ["/nowhere/token"], {}, TOKEN_FILE),
    "another run's folder": ([OTHER] * 3, ["TRAIN.SEED is 99", "TRAIN.LR is 0.5"], {"TRAIN.LR": "0.5"}, {"SEED": "99"}),
    "another run's checkpoint": (
        [OTHER] * 2, ["TRAIN.SEED is 99"], {}, {"SEED": "99", "PHASE": "2", "RESUME_EPOCH": "1"},
    ),
    "precision that the device lacks": (["device.fp16_on_cpu"], ["TRAIN.AMP"], {"TRAIN.AMP": "fp16"}, {}),
    "no machine to meet at": (["launch.no_rendezvous"], [], {}, {"NNODES": "2"}),
    "a machine too many": (
        ["launch.no_rendezvous"], [], {}, {"NNODES": "2", "RENDEZVOUS": "127.0.0.1:29500", "NODE_RANK": "2"},
    ),
}  # fmt: skip
if not torch.cuda.is_available():
    BAD["no GPU"] = (["device.no_gpu"], ["DEVICE=cuda", "DEVICE=cpu"], {}, {"DEVICE": "cuda"})


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_ends_with_2_its_codes_and_nothing_written(
    name: str, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    codes, values, keys, variables = BAD[name]
    output = tmp_path if name.startswith("precision") else uninterrupted
    before = tree(output)
    env = environment(output, demo_data, keys, **variables)
    ended = command("train", env=env) if name == "an unknown key" else train(env)
    assert (ended.code, ended.codes) == (2, codes), ended.said
    assert "Traceback" not in ended.said
    assert [value for value in values if value not in ended.said] == []
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
