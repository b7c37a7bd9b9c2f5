"""A finished run can be extended where no step that it has taken would change; it then equals the longer run."""

import json
import re
import shutil
from pathlib import Path

import pytest
from runs import completed, environment, epochs, numbers

from seqtrack.config.environment import configure
from seqtrack.errors import UserError
from seqtrack.reports.compare import compare_runs
from seqtrack.training.resume import find_run

STEADY = {"TRAIN.SCHEDULER.TYPE": "step", "DATA.TRAIN.SAMPLE_PER_EPOCH": "48"}  # three steps per epoch


@pytest.fixture(scope="module")
def short(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("short")
    completed(environment(output, demo_data, STEADY, EPOCHS=2))
    return output


def test_a_finished_run_that_trains_longer_ends_as_the_run_planned_longer(
    short: Path, demo_data: Path, tmp_path: Path
) -> None:
    output, planned = Path(shutil.copytree(short, tmp_path / "output")), tmp_path / "planned"
    completed(environment(planned, demo_data, STEADY, EPOCHS=4))
    shorter = compare_runs(short / "phase_1", planned / "phase_1")
    assert shorter.verdict == "differs" and all(one.same for one in shorter.epochs), "equal as far as it goes"
    completed(environment(output, demo_data, STEADY, EPOCHS=4, PHASE=2, RESUME_EPOCH=2))
    completed(environment(output, demo_data, STEADY, EPOCHS=4))
    mine, second, theirs = (epochs(one) for one in (output / "phase_1", output / "phase_2", planned / "phase_1"))
    assert {n: one.weights_sha256 for n, one in mine.items()} == {n: one.weights_sha256 for n, one in theirs.items()}
    assert numbers(output / "phase_1") == numbers(planned / "phase_1")
    run = json.loads((output / "phase_1" / "run.json").read_text())
    assert (run["state"], run["epochs"], run["config_digest"]) == ("complete", 4, theirs[4].config_digest)
    assert [start["config_changes"] for start in run["starts"]] == [[], ["TRAIN.EPOCH: 2 / 4"]]
    assert {n: one.sha256 for n, one in second.items()} == {n: theirs[n].sha256 for n in (3, 4)}, "phase 2 as well"


@pytest.mark.parametrize(
    ("keys", "epochs", "refusal"),
    [
        ({"TRAIN.SCHEDULER.TYPE": "cosine"}, 4, "step 6 (epoch 2)"),
        ({"TRAIN.LR_DROP_EPOCH": "1"}, 4, "step 4 (epoch 2)"),
        ({"TRAIN.SCHEDULER.WARMUP_STEPS": "6"}, 4, "step 1 (epoch 1)"),
        ({"TRAIN.SCHEDULER.TYPE": "mstep", "TRAIN.SCHEDULER.MILESTONES": "[1]"}, 2, "step 4 (epoch 2)"),
        ({}, 1, "step 4 (epoch 2)"),
        ({"TRAIN.BATCH_SIZE": "1"}, 4, "TRAIN.BATCH_SIZE"),
        ({"TRAIN.BATCH_SIZE": "1"}, 1, "TRAIN.EPOCH"),
        ({"TRAIN.LR_DROP_EPOCH": "2"}, 2, ""),
        ({"TRAIN.SCHEDULER.DECAY_RATE": "0.5", "TRAIN.SCHEDULER.FINAL_RATIO": "0.5"}, 2, ""),
        ({"TRAIN.SCHEDULER.TYPE": "mstep", "TRAIN.SCHEDULER.MILESTONES": "[2]"}, 2, ""),
        ({"TRAIN.ENCODER_OPEN": "[patch_embed]"}, 2, ""),
        ({"DATA.TRAIN.DATASETS_RATIO": "[3]"}, 2, ""),
    ],
)
def test_a_key_may_differ_where_no_step_taken_would(
    keys: dict[str, str], epochs: int, refusal: str, short: Path, demo_data: Path
) -> None:
    settings, config = configure(environment(short, demo_data, {**STEADY, **keys}, EPOCHS=epochs))
    digest = json.loads((short / "phase_1" / "dataset.json").read_text())["digest"]
    if not refusal:
        assert find_run(settings, config, digest, 3).finished
        return
    with pytest.raises(UserError, match=re.escape(refusal)) as refused:
        find_run(settings, config, digest, 3)
    code = "resume.step_would_differ" if refusal.startswith("step") else "run.other_experiment"
    assert {problem.code for problem in refused.value.problems} == {code}
