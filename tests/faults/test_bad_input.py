"""Mistakes of a user: one clear message, exit code 2, and an unchanged output folder.

One mistake is tried as the command a user types; the others through the same `main` in a forked process.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from runs import command, environment, train, tree

OTHER = "run.other_experiment"
RESUME = {"PHASE": "2", "RESUME_EPOCH": "99", "EPOCHS": "100"}
NOWHERE = {"DATASET": "lasot", "CONFIG": "demo", "DATA_DIR": "/nowhere"}
# By its configuration keys and variables: the codes of its errors, and values in the messages.
BAD: dict[str, tuple[list[str], list[str], dict[str, str], dict[str, str]]] = {
    "an unknown key": (["config.unknown_key"], ["TRAIN.LRR", "TRAIN.LR"], {"TRAIN.LRR": "1e-4"}, {}),
    "no such epoch": (["resume.no_checkpoint"], ["epoch 99", "epochs 1, 2, 3"], {}, RESUME),
    "a missing data folder": (["data.no_folder", "data.no_classes"], ["/nowhere"], {}, NOWHERE),
    "a repository without a token": (["token.missing"], ["me/tracker"], {}, {"HF_REPO": "me/tracker"}),
    "another run's folder": (
        [OTHER] * 3, ["SEED (TRAIN.SEED) is 99", "TRAIN.LR is 0.5"], {"TRAIN.LR": "0.5"}, {"SEED": "99"},
    ),
    "another run's checkpoint": (
        [OTHER] * 2, ["SEED (TRAIN.SEED) is 99"], {}, {"SEED": "99", "PHASE": "2", "RESUME_EPOCH": "1"},
    ),
    "precision that the device lacks": (["device.fp16_on_cpu"], ["TRAIN.AMP"], {"TRAIN.AMP": "fp16"}, {}),
    "no machine to meet at": (["launch.no_rendezvous"], [], {}, {"NNODES": "2"}),
    "a batch too large for its buffer": (
        ["loader.batch_too_large"], ["TRAIN.BATCH_SIZE is 1000000", "62080"], {"TRAIN.BATCH_SIZE": "1000000"}, {},
    ),
    "a number of samples per epoch above the limit": (
        ["config.invalid_value"], ["DATA.TRAIN.SAMPLE_PER_EPOCH", "1000000000"],
        {"DATA.TRAIN.SAMPLE_PER_EPOCH": "9" * 18}, {},
    ),
    "a batch above the limit": (
        ["config.invalid_value"], ["TRAIN.BATCH_SIZE", "BATCH_SIZE", "1000000"], {}, {"BATCH_SIZE": "9" * 18},
    ),
    "a path that the locale cannot express": (
        ["variable.invalid_value"], ["OUTPUT_DIR", "LC_ALL=C.UTF-8", "ascii"], {},
        {"OUTPUT_DIR": "/nowhere/dü", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
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
    ended = command("train", env=env) if "LC_ALL" in variables else train(env)
    assert (ended.code, ended.codes) == (2, codes), ended.said
    assert "Traceback" not in ended.said
    assert [value for value in values if value not in ended.said] == []
    assert tree(output) == before


def test_a_cut_frame_ends_the_run_with_2_and_its_name(demo_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "lasot"
    shutil.copytree(demo_data / "demo", data, copy_function=os.link)
    for frame in (data / "disk" / "disk-5" / "img").glob("*.jpg"):
        whole = frame.read_bytes()
        frame.unlink()  # a hard link: writing through it would damage the original
        frame.write_bytes(whole[: len(whole) // 2])
    lasot = {"DATASET": "lasot", "CONFIG": "demo"}
    ended = train(environment(tmp_path / "out", data.parent, {"TRAIN.NUM_WORKER": "1"}, **lasot, EPOCHS="40"))
    assert ended.code == 2 and "disk-5/img/" in ended.said and "Traceback" not in ended.said, ended.said
