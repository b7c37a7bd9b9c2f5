"""A fact that a run wrote into several files is the same in all of them, or `verify` names the difference."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import completed, environment, epochs, start

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.side_files import ValidationRecord, read_metrics
from seqtrack.cli import main
from seqtrack.reports.compare import check_run, compare_runs
from seqtrack.reports.consistency import inconsistencies

Change = Callable[[dict[str, Any]], object]
ROOT = Path(__file__).parents[2]
OTHER = "phase_1/SEQTRACK_ep0002.safetensors"


def edit(path: Path, change: Change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def substitute(path: Path, pattern: str, text: str) -> None:
    found, count = re.subn(pattern, text, path.read_text(), flags=re.MULTILINE)
    assert count
    path.write_text(found)


def source(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = values["sources"][0]
    return found


def first_class(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(source(values)["classes"].values()))
    return found


EDITS: dict[str, tuple[str, Change]] = {
    "class count": ("dataset.json", lambda one: first_class(one).update(sequences=99)),
    "class frames": ("dataset.json", lambda one: first_class(one).update(frames=99_999)),
    "class visible": ("dataset.json", lambda one: first_class(one).update(visible=99_999)),
    "sequences": ("dataset.json", lambda one: source(one).update(sequences=99)),
    "frames": ("dataset.json", lambda one: source(one).update(frames=99_999)),
    "a name less": ("dataset.json", lambda one: source(one)["names"].pop()),
    "synthetic": ("dataset.json", lambda one: source(one).update(synthetic=False)),
    "digest of a source": ("dataset.json", lambda one: source(one).update(digest="0" * 64)),
    "commit": ("environment.json", lambda one: one.update(commit="0" * 12)),
    "lock": ("environment.json", lambda one: one.update(lock_sha256="0" * 64)),
    "version": ("environment.json", lambda one: one["versions"].update(numpy="9.9")),
    "processor": ("environment.json", lambda one: one.update(cpu="abacus")),
    "version of an epoch": ("checkpoints/SEQTRACK_ep0002.json", lambda one: one["versions"].update(numpy="9.9")),
    "version of the last": ("checkpoints/SEQTRACK_ep0003.json", lambda one: one["versions"].update(numpy="9.9")),
    "device": ("checkpoints/SEQTRACK_ep0002.json", lambda one: one.update(device="CPU abacus")),
    "key of an epoch": (
        "checkpoints/SEQTRACK_ep0002.json",
        lambda one: one["config"]["TRAIN"].update(PRINT_INTERVAL=17),
    ),
    "resumed epoch": ("run.json", lambda one: one.update(resume_epoch=2)),
    "source elsewhere": ("run.json", lambda one: one["starts"][0].update(source="../../../etc/passwd")),
    "source of an epoch": ("run.json", lambda one: one["starts"][0].update(source=OTHER)),
    "step": ("run.json", lambda one: one["starts"][0].update(step=5)),
    "processes": ("run.json", lambda one: one["starts"][0].update(processes=2)),
    "guarantee": ("run.json", lambda one: one["starts"][0].update(guarantee="same_samples")),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("phase", ["phase_1", "phase_2"])
def test_one_edited_fact_is_a_contradiction(name: str, phase: str, pair: Path) -> None:
    file, change = EDITS[name]
    edit(pair / phase / file, change)
    assert check_run(pair / phase) and compare_runs(pair / "phase_1", pair / "phase_2").verdict == "differs"


def test_the_reasons_of_the_guarantee_follow_from_the_fingerprints(pair: Path) -> None:
    edit(pair / "phase_1" / "run.json", lambda one: one["starts"][0].update(differences=["threads"]))
    assert check_run(pair / "phase_1")
    edit(pair / "phase_2" / "run.json", lambda one: one["starts"][0].update(differences=["threads"]))
    assert check_run(pair / "phase_2") == [], "of a checkpoint of phase 1, which is not at hand"
    edit(pair / "phase_1" / "run.json", lambda one: one["starts"][0].update(differences=[]))
    assert compare_runs(pair / "phase_1", pair / "phase_2").verdict == "differs"


def test_names_of_sequences_are_compared_with_those_of_a_run_with_the_same_data(pair: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        source(values)["names"][0] = "another"

    edit(pair / "phase_2" / "dataset.json", rename)
    assert check_run(pair / "phase_2") == [], "only the digest of the data has them as well"
    assert compare_runs(pair / "phase_1", pair / "phase_2").verdict == "differs"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(Epoch 3 finished : mean loss )\d", r"\g<1>0"),
        (r"^(commit ).*( , lock)", r"\g<1>000000000000\2"),
        (r"(, lock sha256 ).*", r"\g<1>0000000000000000"),
        (r"^(torch ).*( , CPU)", r"\g<1>9.9\2"),
        (r" , 1 process$", " , 2 processes"),
        (r"(, seed ).*", r"\g<1>7"),
        (r" \(SYNTHETIC: .*\) : ", " : "),
        (r"(a line every )\d+", r"\g<1>17"),
        (r"(: )bitwise( \()", r"\1same_samples\2"),
        (r"^(checkpoint SEQTRACK_ep0002.* , sha256 ).*", r"\g<1>0000000000000000"),
        (r"^(checkpoint SEQTRACK_ep0002.* : )[\d.]+ MB", r"\g<1>99.9 MB"),
        (r"^(resumes after step )\d+", r"\g<1>5"),
    ],
)
def test_one_edited_line_of_the_log_is_a_contradiction(pattern: str, text: str, pair: Path) -> None:
    (log,) = (pair / "phase_2" / "logs").glob("*.log")
    substitute(log, pattern, text)
    assert check_run(pair / "phase_2")


@pytest.mark.parametrize(
    ("key", "value"), [("INIT_FROM", "elsewhere"), ("PRINT_INTERVAL", "17"), ("KEEP_CHECKPOINTS", "7")]
)
def test_a_key_that_may_differ_between_runs_is_the_same_in_all_files_of_one(key: str, value: str, pair: Path) -> None:
    substitute(pair / "phase_1" / "config.yaml", rf"^(  {key}: ).*", rf"\g<1>{value}")
    assert check_run(pair / "phase_1")


def test_removed_checkpoints_are_missing_whatever_the_configuration_states(pair: Path) -> None:
    for path in (pair / "phase_1" / "checkpoints").glob("SEQTRACK_ep000[12].*"):
        path.unlink()
    substitute(pair / "phase_1" / "config.yaml", r"^(  KEEP_CHECKPOINTS: ).*", r"\g<1>1")
    assert any("1, 2" in problem for problem in check_run(pair / "phase_1"))


def test_scores_of_a_validation_are_those_of_the_log(finished_run: Path) -> None:
    run = finished_run / "phase_2"
    assert check_run(run) == [] and read_metrics(run / "logs" / "metrics.jsonl").of(ValidationRecord)
    substitute(run / "logs" / "metrics.jsonl", r'("auc": )[\d.]+', r"\g<1>99.0")
    assert check_run(run)


def test_a_run_whose_settings_and_machine_changed_on_the_way_is_consistent(demo_data: Path, tmp_path: Path) -> None:
    keys = {"TRAIN.VALIDATION_INTERVAL": 1, "TRAIN.VALIDATION_SEQUENCES": 1}
    completed(environment(tmp_path, demo_data, keys, EPOCHS=2))
    keys = {"TRAIN.PRINT_INTERVAL": 32}
    completed(environment(tmp_path, demo_data, keys, EPOCHS=2, RESUME_EPOCH=1, MKL_CBWR="COMPATIBLE"))
    folder = tmp_path / "phase_1"
    run = read_run(folder)
    assert run is not None and [one.guarantee for one in run.starts] == ["bitwise", "same_samples"]
    assert [one.epoch for one in read_metrics(folder / "logs" / "metrics.jsonl").of(ValidationRecord)] == [1]
    assert check_run(folder) == []
    edit(folder / "run.json", lambda one: one["starts"][1].update(guarantee="bitwise", differences=[]))
    assert check_run(folder)


def test_a_run_that_kept_few_checkpoints_and_then_all_is_consistent(demo_data: Path, tmp_path: Path) -> None:
    keys = {"TRAIN.SCHEDULER.TYPE": "step"}
    completed(environment(tmp_path, demo_data, keys | {"TRAIN.KEEP_CHECKPOINTS": "1"}, EPOCHS=3))
    assert check_run(tmp_path / "phase_1") == []
    completed(environment(tmp_path, demo_data, keys, EPOCHS=4))
    assert len(epochs(tmp_path / "phase_1")) < 4 and check_run(tmp_path / "phase_1") == []
    for path in (tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_ep0003.*"):
        path.unlink()
    assert check_run(tmp_path / "phase_1"), "which no setting deleted"


def test_a_published_run_is_consistent() -> None:
    assert inconsistencies(ROOT / "examples" / "nano" / "phase_1") == []


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_log_that_cannot_be_read_is_named(
    is_folder: bool, pair: Path, demo_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log,) = (pair / "phase_1" / "logs").glob("*.log")
    log.unlink()
    unreadable = log.with_name("a.log")
    unreadable.mkdir() if is_folder else unreadable.symlink_to("nowhere")
    assert main(["verify", str(pair / "phase_1")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "contradictory"
    assert any(str(unreadable) in problem for problem in check_run(pair / "phase_1"))
    with start(environment(pair, demo_data), "audit", "phase_1") as running:
        ended = running.end()
    assert (ended.code, ended.codes) == (2, ["audit.inconsistent"])
