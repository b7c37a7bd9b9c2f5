"""`verify` prints `identical` for a run and its resumed twin; for other runs, where and in what they first differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proof.forger import DERIVED, Forger
from runs import epochs

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.safetensors_io import read_checkpoint_file
from seqtrack.checkpoints.side_files import Certificate, RunRecord
from seqtrack.checkpoints.store import Manifest, write_checkpoint
from seqtrack.cli import main
from seqtrack.errors import UserError
from seqtrack.proof.audit import choose_segments, read_evidence
from seqtrack.reports.compare import check_run, compare_runs
from seqtrack.reports.run_files import OutputFiles
from seqtrack.reports.verdict import conclude
from seqtrack.runtime.guarantee import guarantee

Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Exit code and last line of the command."""

    def call(output: Path, *arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("OUTPUT_DIR", str(output))
        code = main(["verify", *arguments])
        return code, (capsys.readouterr().out.splitlines() or [""])[-1]

    return call


def flip_bit(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def compared(output: Path) -> Certificate:
    return compare_runs(output / "phase_1", output / "phase_2")


def rewrite(manifest: Manifest, *, drop: str | None = None) -> None:
    """Write a checkpoint again, valid in itself, without one state component."""
    contents = read_checkpoint_file(manifest.path, lambda name: name.split("/")[0] != drop)
    values = {name: value for name, value in contents.values.items() if name != drop}
    skipped = ("format", "file", "bytes", "sha256", "weights_sha256", "parts")
    describe: dict[str, Any] = {key: value for key, value in manifest.model_dump().items() if key not in skipped}
    write_checkpoint(manifest.path, contents.kept, values, describe=describe)


def edit_log(output: Path, change: Callable[[dict[str, Any]], None]) -> None:
    log = output / "phase_2" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:
        change(record)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_resumed_run_is_identical_with_certificate_and_plots(pair: Path, verify: Verify) -> None:
    assert verify(pair) == (0, "identical")
    certificate = json.loads((pair / "comparison" / "certificate.json").read_text())
    assert certificate["verdict"] == "identical"
    assert [epoch["epoch"] for epoch in certificate["epochs"]] == [2, 3]
    assert all(epoch["same"] and len(set(epoch["sha256"])) == 1 for epoch in certificate["epochs"])
    for name in ("loss", "iou"):
        assert (pair / "comparison" / f"{name}_comparison.png").stat().st_size > 10_000
    (remark,) = certificate["remarks"]
    assert "phase_1" in remark, "epoch 1 exists in phase 1 only"


def test_only_the_two_phases_of_one_folder_have_a_certificate_there(
    pair: Path, resumed: Path, tmp_path: Path, verify: Verify
) -> None:
    assert verify(pair)[0] == 0
    before = {path: path.read_bytes() for path in (pair / "comparison").iterdir()}
    other = Path(shutil.copytree(resumed / "phase_1", tmp_path / "other" / "phase_1"))
    for runs in (["phase_1", str(other)], [str(other), "phase_2"], ["phase_2", "phase_1"]):
        assert verify(pair, *runs)[1] in ("identical", "differs")
    assert {path: path.read_bytes() for path in (pair / "comparison").iterdir()} == before
    assert not (other.parent / "comparison").exists()
    verify(pair, "-o", str(tmp_path / "c"), "phase_1", str(other))
    record = json.loads((tmp_path / "c" / "certificate.json").read_text())
    assert [one["folder"] for one in record["runs"]] == ["pair/phase_1", "other/phase_1"]


def test_a_certificate_of_other_runs_is_not_used(pair: Path, verify: Verify) -> None:
    assert verify(pair)[0] == 0 and OutputFiles(pair).certificate is not None
    manifest = pair / "phase_2" / "checkpoints" / "SEQTRACK_ep0003.json"
    digest, text = json.loads(manifest.read_text())["sha256"], manifest.read_text()
    manifest.write_text(text.replace(digest, "0" * 64))
    assert OutputFiles(pair).certificate is None, "another checkpoint"
    manifest.write_text(text)
    run = pair / "phase_1" / "run.json"
    record = json.loads(run.read_text())
    run.write_text(json.dumps({**record, "starts": record["starts"] * 2}))
    found = OutputFiles(pair)
    assert (found.certificate, found.comparison_plots) == (None, []), "a run that was started again"


def test_one_flipped_bit_is_reported_by_epoch_component_and_tensor(pair: Path, verify: Verify) -> None:
    manifest = epochs(pair / "phase_2")[2]
    contents = read_checkpoint_file(manifest.path, lambda name: name.endswith("bottleneck.weight"))
    name = next(name for name in contents.kept if name.startswith("model/"))
    flip_bit(manifest.path, manifest.path.read_bytes().index(contents.kept[name].data))
    assert verify(pair) == (1, "differs")
    certificate = compared(pair)
    assert [one.same for one in certificate.epochs] == [False, True]
    assert certificate.epochs[0].differences[0] == f"model ({name.removeprefix('model/')})"
    assert manifest.path.name in certificate.epochs[0].differences[1], "nor does the file match its manifest"
    assert certificate.first_difference and certificate.first_difference.startswith("epoch 2: model (")


@pytest.mark.parametrize("component", [None, "scheduler", "rng", "history"])
def test_a_missing_component_is_reported_by_name(component: str | None, pair: Path) -> None:
    rewrite(epochs(pair / "phase_2")[3], drop=component)
    differing = [one.differences[0].split()[0] for one in compared(pair).epochs if not one.same]
    assert differing == ([component] if component else [])


def test_a_different_number_of_the_log_is_reported_by_its_step_and_wall_clock_times_may_differ(
    pair: Path, verify: Verify
) -> None:
    edit_log(pair, lambda record: "data_wait_s" in record and record.update(data_wait_s=1.0))
    assert compared(pair).verdict == "identical"
    steps: list[int] = []

    def change(record: dict[str, Any]) -> None:
        if record["epoch"] == 3 and not steps:
            steps.append(record["step"])
            record["loss"] += 1e-12

    edit_log(pair, change)
    assert verify(pair) == (1, "differs")
    assert compared(pair).epochs[-1].differences == [f"log numbers from step {steps[0]}"]


def test_records_written_at_other_intervals_are_not_compared_but_epoch_means_are(finished_run: Path) -> None:
    certificate = compared(finished_run)
    assert certificate.verdict == "identical"
    remarks = " ".join(certificate.remarks)
    assert "TRAIN.PRINT_INTERVAL" in remarks and "TRAIN.VALIDATION_INTERVAL" in remarks
    edit_log(finished_run, lambda record: record["type"] == "epoch" and record.update(loss=record["loss"] + 1e-12))
    assert [len(one.differences) for one in compared(finished_run).epochs] == [1, 1]


def test_a_run_that_ended_earlier_differs(pair: Path) -> None:
    for path in (pair / "phase_2" / "checkpoints").glob("SEQTRACK_ep0003*"):
        path.unlink()
    assert compared(pair).verdict == "differs" and all(one.same for one in compared(pair).epochs)


@pytest.mark.parametrize("name", ["checkpoints/SEQTRACK_ep0002.json", "run.json", "dataset.json", "logs/metrics.jsonl"])
def test_an_invalid_file_does_not_pass_for_one_that_was_never_written(name: str, pair: Path) -> None:
    (pair / "phase_2" / name).write_text("{\n")
    certificate = compared(pair)
    assert certificate.verdict == "differs"
    assert any(Path(name).name in text for text in (certificate.first_difference or "", *certificate.remarks))


def test_runs_that_cannot_be_compared_are_refused_but_no_file_is_needed(
    pair: Path, tmp_path: Path, verify: Verify
) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for arguments in (["phase_1", "phase_9"], ["phase_1", str(tmp_path / "empty")]):
        assert verify(pair, *arguments)[0] == 2
    assert verify(pair, "-o", str(pair / "phase_1" / "run.json" / "x"), "phase_1", "phase_2") == (0, "identical")


def test_a_run_is_checked_by_itself_along_its_hash_chain(pair: Path, verify: Verify) -> None:
    for phase in ("phase_1", "phase_2"):
        assert check_run(pair / phase) == [] and verify(pair, phase) == (0, "consistent")
    manifest = epochs(pair / "phase_1")[2]
    rewrite(manifest, drop="rng")
    found = " ".join(check_run(pair / "phase_1"))
    assert "SEQTRACK_ep0003.json" in found, "altered with its manifest: found by the next one"
    flip_bit(manifest.path)
    problems = check_run(pair / "phase_1")
    assert any(problem.startswith("epoch 2: ") and str(manifest.path) in problem for problem in problems)
    assert verify(pair, "phase_1") == (1, "contradictory")


@pytest.mark.parametrize("name", ["parent_sha256", "weights_sha256"])
def test_an_edited_digest_is_found(name: str, pair: Path) -> None:
    path = epochs(pair / "phase_1")[3].manifest_path
    path.write_text(json.dumps({**json.loads(path.read_text()), name: "0" * 64}))
    problems = check_run(pair / "phase_1")
    assert problems and all(path.stem in problem and name in problem for problem in problems)


def test_a_foreign_link_of_the_hash_chain_is_found_where_file_and_manifest_agree_on_it(pair: Path) -> None:
    foreign = {"parent_sha256": "0" * 64}
    last = Forger(pair / "phase_1").epochs[3]
    last.values["lineage"] |= foreign
    describe = {key: value for key, value in last.manifest.items() if key not in DERIVED}
    path = epochs(pair / "phase_1")[3].path
    write_checkpoint(path, last.tensors, last.values, describe=describe | foreign)
    assert any(path.stem in problem and "parent_sha256" in problem for problem in check_run(pair / "phase_1"))


def test_a_copy_and_an_edited_fact_are_differences(pair: Path, verify: Verify) -> None:
    manifest = epochs(pair / "phase_2")[2].manifest_path
    old = manifest.read_text()
    for name, value in (("device", "abacus"), ("phase", 1), ("loss", 0.1), ("data_digest", "0" * 64)):
        manifest.write_text(json.dumps({**json.loads(old), name: value}))
        assert verify(pair)[1] == "differs" and verify(pair, "phase_2") == (1, "contradictory")
    shutil.rmtree(pair / "phase_2")
    shutil.copytree(pair / "phase_1", pair / "phase_2")
    assert verify(pair)[1] == "differs"
    assert verify(pair, "phase_1", "phase_1")[0] == 2


def _copied(kind: str, at: int | None = None, **claims: object) -> Callable[[list[dict[str, Any]]], None]:
    """Put a copy of the last record of this kind, with some fields changed, at this place."""

    def change(records: list[dict[str, Any]]) -> None:
        last = [one for one in records if one["type"] == kind][-1]
        records.insert(len(records) if at is None else at, last | claims)

    return change


_SCORES = dict.fromkeys(("auc", "op50", "op75", "p20", "p_norm", "mean_iou", "sequences", "frames", "fps"), 99.0)


@pytest.mark.parametrize(
    "change",
    [
        _copied("epoch", 0, iou=0.99),
        _copied("epoch", epoch=4, step=24, iou=0.99),
        lambda records: records[-1].update(phase=2),
        lambda records: records.append({"type": "validation", "phase": 1, "epoch": 3, "step": 18, **_SCORES}),
    ],
)
def test_a_record_that_no_training_wrote_is_a_contradiction(
    change: Callable[[list[dict[str, Any]]], None], pair: Path
) -> None:
    log = pair / "phase_1" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    change(records)
    log.write_text("".join(json.dumps(one) + "\n" for one in records))
    assert check_run(pair / "phase_1")


@pytest.mark.parametrize(
    ("name", "value"), [("world_size", -1), ("world_size", 0), ("world_size", "1"), ("threads", 0), ("threads", True)]
)
def test_a_number_of_processes_or_threads_that_no_run_can_have_is_refused(name: str, value: object, pair: Path) -> None:
    run = pair / "phase_1"
    for path in (run / "run.json", run / "environment.json", *(run / "checkpoints").glob("*.json")):
        content = json.loads(path.read_text())
        for one in content.get("starts", [content]):
            one["fingerprint"][name] = value
        path.write_text(json.dumps(content))
    assert check_run(run)
    with pytest.raises(UserError):
        read_evidence(run)


@pytest.mark.parametrize("first", [3, 99])
def test_a_run_that_claims_to_have_trained_no_epoch_is_not_audited(first: int, pair: Path) -> None:
    path = pair / "phase_1" / "run.json"
    run = json.loads(path.read_text())
    run["starts"][0] |= {"epoch": first, "source": "phase_0"}
    path.write_text(json.dumps(run))
    evidence = read_evidence(pair / "phase_1")
    for choice in ({"segments": 1, "epochs": None}, {"segments": None, "epochs": []}):
        with pytest.raises(UserError) as caught:
            choose_segments(evidence, nonce="n", steps=1, **choice)
        assert caught.value.code == "audit.no_epoch"


@pytest.mark.parametrize(
    "values", [{"history": "abc"}, {"history": [1]}, {"history": {"a": 1}}, {"history": None}, {"lineage": []}]
)
def test_a_state_of_another_form_is_damage(values: dict[str, Any], pair: Path) -> None:
    last = Forger(pair / "phase_1").epochs[3]
    describe = {key: value for key, value in last.manifest.items() if key not in DERIVED}
    write_checkpoint(epochs(pair / "phase_1")[3].path, last.tensors, last.values | values, describe=describe)
    assert any("SEQTRACK_ep0003.safetensors" in problem for problem in check_run(pair / "phase_1"))


def record(output: Path, guarantee: str) -> RunRecord:
    """The record of a phase 2 that was started once."""
    run = read_run(output / "phase_1")
    assert run is not None
    starts = [run.starts[0].model_copy(update={"guarantee": guarantee})]
    return run.model_copy(update={"phase": 2, "starts": starts})


@pytest.mark.parametrize(
    ("damaged", "guarantee", "verdict", "code"),
    [(False, "bitwise", "identical", 0), (True, "bitwise", "differs", 1), (True, "same_samples", "differs", 0)],
)
def test_a_difference_is_a_failure_where_bitwise_equality_was_guaranteed(
    pair: Path, caplog: pytest.LogCaptureFixture, damaged: bool, guarantee: str, verdict: str, code: int
) -> None:
    caplog.set_level("INFO")
    if damaged:
        flip_bit(pair / "phase_2" / "checkpoints" / "SEQTRACK_ep0002.safetensors")
    run = record(pair, guarantee)
    assert conclude(pair, run) == code
    assert caplog.messages[-1] == verdict
    assert f"**{verdict}**" in (pair / "comparison" / "comparison.md").read_text()
    rows = [line for line in caplog.messages if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["2", "3"] and len(set(map(len, rows))) == 1
    shutil.rmtree(pair / "comparison")
    shutil.rmtree(pair / "phase_1")  # a phase 2 alone is not compared
    assert conclude(pair, run) == 0 and not (pair / "comparison").exists()


def test_equal_fingerprints_guarantee_equal_bits_and_others_are_listed() -> None:
    ours = {"torch": "2.4.1", "world_size": 1, "threads": 2, "compile": False, "deterministic": True}
    assert guarantee(ours, dict(ours)) == ("bitwise", [])
    held, (difference,) = guarantee({**ours, "world_size": 2}, ours)
    assert held == "same_samples" and difference.startswith("world_size: ")
