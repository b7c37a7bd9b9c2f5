"""A finished run can be extended where no step that it has taken would change; it then equals the longer run."""

import json
import shutil
from pathlib import Path

import pytest
from runs import completed, demo_data, environment, epochs, numbers, train, tree, uninterrupted

__all__ = ["demo_data", "uninterrupted"]

STEADY = {"TRAIN.SCHEDULER.TYPE": "step", "DATA.TRAIN.SAMPLE_PER_EPOCH": "48"}  # three steps per epoch


@pytest.fixture(scope="module")
def planned(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs; read it, change nothing in it."""
    output = tmp_path_factory.mktemp("planned")
    completed(environment(output, demo_data, STEADY, EPOCHS=4))
    return output


@pytest.fixture(scope="module")
def short(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("short")
    completed(environment(output, demo_data, STEADY, EPOCHS=2))
    return output


def test_a_finished_run_that_trains_longer_ends_as_the_run_planned_longer(
    short: Path, planned: Path, demo_data: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(short, tmp_path / "output"))
    completed(environment(output, demo_data, STEADY, EPOCHS=4))
    mine, theirs = epochs(output / "phase_1"), epochs(planned / "phase_1")
    assert sorted(mine) == [1, 2, 3, 4]
    assert {n: one.weights_sha256 for n, one in mine.items()} == {n: one.weights_sha256 for n, one in theirs.items()}
    assert numbers(output / "phase_1") == numbers(planned / "phase_1")
    run = json.loads((output / "phase_1" / "run.json").read_text())
    assert (run["state"], run["epochs"], run["config_digest"]) == ("complete", 4, theirs[4].config_digest)
    assert [start["config_changes"] for start in run["starts"]] == [[], ["TRAIN.EPOCH: 2 / 4"]]


def test_phase_2_continues_from_a_shorter_phase_1(short: Path, planned: Path, demo_data: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(short, tmp_path / "output"))
    completed(environment(output, demo_data, STEADY, EPOCHS=4, PHASE=2, RESUME_EPOCH=2))
    mine, theirs = epochs(output / "phase_2"), epochs(planned / "phase_1")
    assert {n: one.sha256 for n, one in mine.items()} == {n: theirs[n].sha256 for n in (3, 4)}


@pytest.mark.parametrize(
    ("keys", "variables", "step"),
    [
        ({"TRAIN.SCHEDULER.TYPE": "cosine"}, {"EPOCHS": 4}, 6),
        ({"TRAIN.LR_DROP_EPOCH": "1"}, {"EPOCHS": 4}, 4),
        ({"TRAIN.SCHEDULER.WARMUP_STEPS": "6"}, {"EPOCHS": 4}, 1),
        ({"TRAIN.SCHEDULER.TYPE": "mstep", "TRAIN.SCHEDULER.MILESTONES": "[1]"}, {"EPOCHS": 2}, 4),
        ({}, {"EPOCHS": 1}, 4),
    ],
)
def test_a_schedule_under_which_a_step_taken_would_differ_is_refused_with_that_step(
    keys: dict[str, str], variables: dict[str, int], step: int, short: Path, demo_data: Path
) -> None:
    before = tree(short)
    ended = train(environment(short, demo_data, {**STEADY, **keys}, **variables))
    assert ended.code == 2, ended.said
    assert set(ended.codes) == {"resume.step_would_differ"}
    assert f"step {step} (epoch {(step + 2) // 3})" in ended.said
    assert tree(short) == before


@pytest.mark.parametrize(
    "keys",
    [
        {"TRAIN.LR_DROP_EPOCH": "2"},
        {"TRAIN.SCHEDULER.DECAY_RATE": "0.5", "TRAIN.SCHEDULER.FINAL_RATIO": "0.5"},
        {"TRAIN.SCHEDULER.TYPE": "mstep", "TRAIN.SCHEDULER.MILESTONES": "[2]"},
        {"TRAIN.ENCODER_OPEN": "[patch_embed]"},
        {"DATA.TRAIN.DATASETS_RATIO": "[3]"},
    ],
)
def test_a_key_that_changes_no_step_taken_need_not_match(keys: dict[str, str], short: Path, demo_data: Path) -> None:
    before = tree(short)
    completed(environment(short, demo_data, {**STEADY, **keys}, EPOCHS=2))
    assert tree(short) == before


@pytest.mark.parametrize("keys", [{"TRAIN.SEED": "1"}, {"TRAIN.BATCH_SIZE": "8"}])
def test_a_key_of_another_experiment_is_refused(keys: dict[str, str], short: Path, demo_data: Path) -> None:
    ended = train(environment(short, demo_data, {**STEADY, **keys}, EPOCHS=4))
    assert ended.code == 2 and "run.other_experiment" in ended.codes
    assert next(iter(keys)) in ended.said
