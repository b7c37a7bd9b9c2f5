"""`audit` recomputes: honest runs are confirmed, and no forgery passes, however consistent it is."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import Ended, completed, environment, epochs, start
from uploads.hub_server import Hub

from proof.forger import Forger, replace_frames
from seqtrack.checkpoints.side_files import AuditRecord, IntervalRecord
from seqtrack.errors import STOPPED_EXIT_CODE
from seqtrack.reports.compare import compare_runs
from seqtrack.reports.consistency import copies, inconsistencies
from seqtrack.runtime.metrics_log import RunLog


def audit(output: Path, data: Path, *words: str, run: str = "phase_1", **variables: object) -> Ended:
    with start(environment(output, data, **variables), "audit", run, *words) as running:
        return running.end()


def certificate(output: Path, run: str = "phase_1") -> AuditRecord:
    return AuditRecord.model_validate_json((output / run / "audit.json").read_text())


@pytest.fixture
def output(uninterrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(uninterrupted, tmp_path / "output"))


def verdict(ended: Ended) -> tuple[int, str]:
    return ended.code, ended.said.splitlines()[-1]


def test_an_honest_run_is_confirmed(output: Path, demo_data: Path) -> None:
    assert inconsistencies(output / "phase_1") == []
    assert verdict(audit(output, demo_data, "--nonce", "n", "--steps", "3")) == (0, "confirmed")
    found = certificate(output)
    assert [(one.epoch, one.start_epoch, one.steps, one.states) for one in found.segments] == [
        (1, 0, 6, [1]), (2, 1, 3, []), (3, 2, 6, [3]),
    ]  # fmt: skip
    assert (found.nonce, found.steps, found.steps_of_run) == ("n", 15, 18)
    assert all(one.records and one.verdict == "confirmed" for one in found.segments)


def test_a_resumed_run_is_confirmed_from_its_own_start(resumed: Path, demo_data: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(resumed, tmp_path / "output"))
    assert inconsistencies(output / "phase_2") == []
    assert verdict(audit(output, demo_data, "--epochs", "all", run="phase_2")) == (0, "confirmed")
    assert [one.epoch for one in certificate(output, "phase_2").segments] == [2, 3]


def assert_confirmed_in_every_form(output: Path, data: Path, run: str = "phase_1") -> None:
    assert verdict(audit(output, data, "--epochs", "all", run=run)) == (0, "confirmed")
    assert verdict(audit(output, data, "--nonce", "n", run=run)) == (0, "confirmed")
    with start(environment(output, data), "reproduce", run) as running:
        assert verdict(running.end()) == (0, "identical")


def test_a_run_that_deleted_old_checkpoints_is_confirmed(demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {"TRAIN.KEEP_CHECKPOINTS": 1}, EPOCHS=4))
    assert len(epochs(tmp_path / "phase_1")) < 4
    assert_confirmed_in_every_form(tmp_path, demo_data)


def test_a_run_that_continued_with_another_log_interval_is_confirmed(demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {"TRAIN.PRINT_INTERVAL": 88}))
    completed(environment(tmp_path, demo_data, {"TRAIN.PRINT_INTERVAL": 16}, RESUME_EPOCH=2))
    assert_confirmed_in_every_form(tmp_path, demo_data)


def stop_after_two_records() -> None:
    """As a signal in the middle of an epoch would."""
    interval = RunLog.interval

    def record_and_stop(log: RunLog, record: IntervalRecord) -> None:
        interval(log, record)
        if record.sample == 32:
            os.kill(os.getpid(), signal.SIGTERM)

    RunLog.interval = record_and_stop  # type: ignore[method-assign]


def test_a_run_that_was_stopped_and_continued_with_another_log_interval_is_confirmed(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(uninterrupted, tmp_path / "output"))
    second = {"PHASE": 2, "RESUME_EPOCH": 1}
    with start(environment(output, demo_data, **second), prepare=stop_after_two_records) as running:
        assert running.end().code == STOPPED_EXIT_CODE
    completed(environment(output, demo_data, {"TRAIN.PRINT_INTERVAL": 48}, **second))
    assert_confirmed_in_every_form(output, demo_data, "phase_2")


def test_a_thin_run_has_every_digest_and_every_epoch_comes_back(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "thin"
    completed(environment(output, demo_data, {"TRAIN.CHECKPOINT_EPOCHS": 3}))
    ours, full = output / "phase_1" / "checkpoints", uninterrupted / "phase_1" / "checkpoints"
    assert sorted(one.name for one in ours.glob("*.safetensors")) == ["SEQTRACK_ep0003.safetensors"]
    assert inconsistencies(output / "phase_1") == []
    assert compare_runs(uninterrupted / "phase_1", output / "phase_1").first_difference is None
    for epoch in (2, 1):
        with start(environment(output, demo_data), "restore", "--epoch", str(epoch)) as running:
            assert running.end().code == 0
        name = f"SEQTRACK_ep{epoch:04d}.safetensors"
        assert (ours / name).read_bytes() == (full / name).read_bytes()
    assert verdict(audit(output, demo_data)) == (0, "confirmed")


def test_a_published_run_is_audited_and_reproduced(resumed: Path, demo_data: Path, tmp_path: Path) -> None:
    output, hub = Path(shutil.copytree(resumed, tmp_path / "output")), Hub().start()
    on_hub = {"HF_REPO": "me/run", "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_writewritewritewrite"}
    on_hub["UPLOAD_TUNING"] = '{"settle_s": 0.2}'
    with start(environment(output, demo_data, **on_hub), "upload", "--once") as running:
        assert running.end().code == 0
    reader = {**on_hub, "HF_REPO": "", "HF_TOKEN": "hf_readreadreadreadread"}
    elsewhere = environment(tmp_path / "elsewhere", demo_data, **reader)
    for words, expected in (
        (["audit", "hf://me/run", "--segments", "1", "--steps", "2"], (0, "confirmed")),
        (["audit", f"hf://me/run@{hub.repos['me/run'].commits[-1][0]}/phase_2", "--epochs", "2"], (0, "confirmed")),
        (["reproduce", "hf://me/run/phase_1"], (0, "identical")),
    ):
        with start(elsewhere, *words) as running:
            assert verdict(running.end()) == expected
    forger = Forger(output / "phase_1")
    forger.relabel("TRAIN.LR", 2e-3)
    forger.write()
    with start(environment(output, demo_data, **{**on_hub, "HF_REPO": "me/forged"}), "upload", "--once") as running:
        assert running.end().code == 0
    with start(elsewhere, "reproduce", "hf://me/forged") as running:
        ended = running.end()
    assert verdict(ended) == (1, "differs")
    assert "epoch 1, step 1: optimizer (lr)" in ended.said
    for address in ("hf://me", "hf://me/run@0000000000000000000000000000000000000000"):
        with start(elsewhere, "audit", address) as running:
            assert running.end().code == 2
    hub.stop()


def zeroed(data: bytearray) -> bytearray:
    return bytearray(len(data))


def flipped(data: bytearray) -> bytearray:
    data[len(data) // 2] ^= 1
    return data


def swap_epochs(forger: Forger) -> None:
    forger.epochs[2].tensors, forger.epochs[3].tensors = forger.epochs[3].tensors, forger.epochs[2].tensors


FORGERIES: dict[str, tuple[Callable[[Forger], None], int, str]] = {
    "weights zeroed from an epoch on": (lambda one: one.weights(2, 3, zeroed), 2, "state (model)"),
    "one bit of each tensor at the end": (lambda one: one.weights(3, 3, flipped), 3, "state (model)"),
    "the optimizer's moments": (lambda one: one.weights(2, 2, zeroed, "optimizer/"), 2, "state (optimizer)"),
    "a lower loss everywhere": (lambda one: one.scale("loss", 2, 0.5), 2, "forward (loss)"),
    "a higher IoU everywhere": (lambda one: one.scale("iou", 3, 1.5), 3, "forward (iou)"),
    "epochs exchanged": (swap_epochs, 2, "state (model)"),
    "another learning rate": (lambda one: one.relabel("TRAIN.LR", 2e-3), 1, "optimizer (lr)"),
    "another seed": (lambda one: one.relabel("TRAIN.SEED", 7), 1, "samples (checksum)"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_that_is_consistent_is_refuted_where_it_begins(name: str, output: Path, demo_data: Path) -> None:
    forge, epoch, quantity = FORGERIES[name]
    forger = Forger(output / "phase_1")
    forge(forger)
    forger.write()
    assert inconsistencies(output / "phase_1") == []
    assert verdict(audit(output, demo_data, "--epochs", str(epoch))) == (1, "refuted")
    found = [one.difference for one in certificate(output).segments if one.difference is not None]
    assert (found[0].epoch, found[0].quantity) == (epoch, quantity)


def test_frames_replaced_by_others_of_their_size_are_other_samples(demo_data: Path, tmp_path: Path) -> None:
    data, output = Path(shutil.copytree(demo_data, tmp_path / "data")), tmp_path / "output"
    replace_frames(data.glob("demo/*/*/img"))
    completed(environment(output, data, EPOCHS=1))
    assert verdict(audit(output, demo_data)) == (1, "refuted")
    (segment,) = certificate(output).segments
    assert segment.difference is not None and segment.difference.quantity == "samples (checksum)"


def test_what_compares_nothing_confirms_nothing(demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {"TRAIN.PRINT_INTERVAL": 88}, EPOCHS=1))
    assert verdict(audit(tmp_path, demo_data, "--segments", "1", "--steps", "2")) == (3, "undecided")
    assert certificate(tmp_path).segments[0].records == 0
    for option in ("--segments=0", "--steps=-1", "--epochs=7", "--epochs=x", "--nonce=a\udcff"):
        assert audit(tmp_path, demo_data, option).code == 2


def test_a_thin_run_that_was_killed_and_stopped_ends_as_one_that_was_not(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, {"TRAIN.CHECKPOINT_EPOCHS": 3, "TRAIN.SAVE_INTERVAL_S": 0.01})
    checkpoints = tmp_path / "phase_1" / "checkpoints"
    for epoch, number in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
        with start(env) as running:
            running.until((checkpoints / f"SEQTRACK_ep{epoch:04d}.json").exists)
            running.signal(number)
            running.end()
    completed(env)
    ours, theirs = (one / "SEQTRACK_ep0003.safetensors" for one in (checkpoints, uninterrupted / "phase_1/checkpoints"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert inconsistencies(tmp_path / "phase_1") == []


def test_a_copy_is_not_a_second_run(output: Path) -> None:
    shutil.copytree(output / "phase_1", output / "phase_2")
    assert copies(output / "phase_1", output / "phase_2")
    assert inconsistencies(output / "phase_2")
