"""`verify` says `identical` of a run and its resumed twin, and of anything else where and in what they first differ."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Ended, completed, demo_data, environment, epochs, start, uninterrupted

from seqtrack.checkpoints.safetensors_io import TensorBytes, read_header
from seqtrack.checkpoints.store import Manifest, read_values, write_checkpoint
from seqtrack.errors import UserError
from seqtrack.reports.compare import check_hash_chain, compare_runs

__all__ = ["demo_data", "uninterrupted"]


@pytest.fixture
def pair(resumed: Path, tmp_path: Path) -> Path:
    """An output folder with phase_1 and the phase_2 that resumed it after epoch 1, to be tampered with."""
    return shutil.copytree(resumed, tmp_path / "pair")


@pytest.fixture(scope="module")
def resumed(uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("resumed") / "output"
    shutil.copytree(uninterrupted, output)
    completed(environment(output, demo_data, PHASE=2, RESUME_EPOCH=1))
    return output


def _verify(output: Path, *words: str) -> Ended:
    with start(environment(output, output), "verify", *words) as running:
        return running.end()


def _last(ended: Ended) -> str:
    return ended.said.splitlines()[-1]


def _rewrite(manifest: Manifest, *, drop: str | None = None) -> None:
    """Write a checkpoint again, valid in itself, with one part as if it had never been saved."""
    header = read_header(manifest.path)
    raw = manifest.path.read_bytes()
    tensors = {
        name: TensorBytes(entry.dtype, entry.shape, memoryview(raw[entry.begin : entry.end]))
        for name, entry in header.entries.items()
        if name.split("/")[0] != drop
    }
    values = {name: value for name, value in read_values(manifest.path, header).items() if name != drop}
    skipped = ("format", "file", "bytes", "sha256", "weights_sha256", "parts")
    describe: dict[str, Any] = {key: value for key, value in manifest.model_dump().items() if key not in skipped}
    write_checkpoint(manifest.path, tensors, values, describe=describe)


def test_a_resumed_run_is_identical_and_the_certificate_says_what_was_compared(pair: Path) -> None:
    ended = _verify(pair)
    assert (ended.code, _last(ended)) == (0, "identical")
    certificate = json.loads((pair / "comparison" / "certificate.json").read_text())
    assert certificate["verdict"] == "identical"
    assert [epoch["epoch"] for epoch in certificate["epochs"]] == [2, 3]
    assert all(epoch["same"] and len(set(epoch["sha256"])) == 1 for epoch in certificate["epochs"])
    for name in ("loss", "iou", "training"):
        assert (pair / "comparison" / f"{name}_comparison.png").stat().st_size > 10_000
    assert "only phase_1 has a checkpoint of epochs 1: not compared" in ended.said


def test_a_run_of_another_seed_differs_from_its_first_epoch_in_its_weights(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    completed(environment(tmp_path, demo_data, SEED=7))
    ended = _verify(tmp_path, str(uninterrupted / "phase_1"), str(tmp_path / "phase_1"))
    assert (ended.code, _last(ended)) == (1, "differs")
    assert "first difference: epoch 1: model (" in ended.said
    assert "first log numbers that differ are at step 1" in ended.said


def test_one_bit_of_one_weight_differs_by_epoch_part_and_tensor(pair: Path) -> None:
    manifest = epochs(pair / "phase_2")[2]
    entries = read_header(manifest.path).entries
    name, entry = next((name, entry) for name, entry in entries.items() if name.endswith("bottleneck.weight"))
    data = bytearray(manifest.path.read_bytes())
    data[entry.begin] ^= 1
    manifest.path.write_bytes(data)
    ended = _verify(pair)
    assert (ended.code, _last(ended)) == (1, "differs")
    assert f"first difference: epoch 2: model ({name.removeprefix('model/')})" in ended.said
    assert "is not the file of its manifest" in ended.said
    comparison = compare_runs(pair / "phase_1", pair / "phase_2")
    assert [row.is_same for row in comparison.rows] == [False, True]


@pytest.mark.parametrize("part", ["scheduler", "optimizer", "rng", "history"])
def test_a_part_left_out_differs_by_its_name(part: str, pair: Path) -> None:
    _rewrite(epochs(pair / "phase_2")[3], drop=part)
    ended = _verify(pair)
    assert (ended.code, _last(ended)) == (1, "differs")
    assert f"first difference: epoch 3: {part}" in ended.said


def test_a_checkpoint_written_again_unchanged_is_the_same(pair: Path) -> None:
    _rewrite(epochs(pair / "phase_2")[3])
    assert _last(_verify(pair)) == "identical"


def test_a_number_of_the_log_that_differs_is_named_by_its_step(pair: Path) -> None:
    log = pair / "phase_2" / "logs" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    changed = next(line for line in lines if line["epoch"] == 3)
    changed["loss"] += 1e-12
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = _verify(pair)
    assert (ended.code, _last(ended)) == (1, "differs")
    assert f"epoch 3: log numbers; first log numbers that differ are at step {changed['step']}" in ended.said


def test_what_depends_on_the_clock_may_differ(pair: Path) -> None:
    log = pair / "phase_2" / "logs" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line["time_s"] *= 2
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare_runs(pair / "phase_1", pair / "phase_2").verdict == "identical"


def test_a_run_that_ended_earlier_differs(pair: Path) -> None:
    for path in (pair / "phase_2" / "checkpoints").glob("SEQTRACK_ep0003*"):
        path.unlink()
    ended = _verify(pair)
    assert (ended.code, _last(ended)) == (1, "differs")
    assert "phase_1 ends at epoch 3, phase_2 at epoch 2" in ended.said


def test_an_unusable_manifest_does_not_pass_for_an_epoch_that_was_never_saved(pair: Path) -> None:
    (pair / "phase_2" / "checkpoints" / "SEQTRACK_ep0002.json").write_text("{")
    ended = _verify(pair)
    assert (ended.code, _last(ended)) == (1, "differs")
    assert "epoch 2: the manifest SEQTRACK_ep0002.json of phase_2 is unusable" in ended.said


def test_runs_that_cannot_be_compared_are_refused(pair: Path, tmp_path: Path) -> None:
    assert _verify(pair, "phase_1", "phase_9").code == 2
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no epoch in common"):
        compare_runs(pair / "phase_1", tmp_path / "empty")
    assert _verify(pair, "phase_1").code == 2


@pytest.fixture
def read_only(resumed: Path, tmp_path: Path) -> Iterator[Path]:
    """The pair on a file system that cannot be written."""
    place = tmp_path / "read-only"
    place.mkdir()
    done = subprocess.run(["mount", "--bind", str(resumed), str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_verdict_is_given_where_nothing_can_be_written(read_only: Path) -> None:
    ended = _verify(read_only)
    assert (ended.code, _last(ended)) == (0, "identical")
    assert "could not be written" in ended.said
    assert "Traceback" not in ended.said


def test_a_whole_chain_is_whole_over_both_phases(pair: Path) -> None:
    assert check_hash_chain([pair / "phase_1"]) == []
    assert check_hash_chain([pair / "phase_2", pair / "phase_1"]) == []
    ended = _verify(pair, "--chain", "phase_2", "phase_1")
    assert (ended.code, _last(ended)) == (0, "whole")


def test_a_missing_link_is_found(pair: Path) -> None:
    assert any("epoch 2: the link to epoch 1 is missing" in problem for problem in check_hash_chain([pair / "phase_2"]))
    ended = _verify(pair, "--chain", "phase_2")
    assert (ended.code, _last(ended)) == (1, "broken")


def test_an_altered_link_is_found(pair: Path) -> None:
    path = epochs(pair / "phase_1")[2].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    problems = check_hash_chain([pair / "phase_1"])
    assert any("epoch 2:" in problem and "was altered" in problem for problem in problems)


def test_a_link_altered_with_its_manifest_is_found_by_the_next_one(pair: Path) -> None:
    _rewrite(epochs(pair / "phase_1")[2], drop="rng")
    assert check_hash_chain([pair / "phase_1"]) == [
        "epoch 3: was not trained on from this epoch 2: its parent's sha256 differs"
    ]


def test_a_foreign_link_is_found(pair: Path, demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path / "other", demo_data, SEED=8, EPOCHS=2))
    foreign = epochs(tmp_path / "other" / "phase_1")[2]
    for source in (foreign.path, foreign.manifest_path):
        shutil.copy(source, pair / "phase_1" / "checkpoints")
    problems = " ".join(check_hash_chain([pair / "phase_1"]))
    assert "epoch 2: was not trained on from this epoch 1" in problems
    assert "epoch 3: was not trained on from this epoch 2" in problems


def test_a_manifest_whose_digests_were_edited_is_found(pair: Path) -> None:
    path = epochs(pair / "phase_1")[3].manifest_path
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
    (problem,) = check_hash_chain([pair / "phase_1"])
    assert problem.startswith("epoch 3: ")
