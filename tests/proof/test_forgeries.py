"""Many forgeries and many honest runs: every forgery is refused or refuted, and no honest run ever is."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import completed, environment, start

from proof.forger import Forger
from proof.test_audit import audit, verdict
from seqtrack.checkpoints.side_files import AuditRecord
from seqtrack.reports.consistency import copies, inconsistencies

pytestmark = pytest.mark.long

EPOCHS = 5
Forgery = Callable[[random.Random, Path], int]  # returns the first epoch that was forged


@pytest.fixture(scope="module")
def honest(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("honest")
    completed(environment(output, demo_data, EPOCHS=EPOCHS))
    completed(environment(output, demo_data, EPOCHS=EPOCHS, PHASE=2, RESUME_EPOCH=2))
    return output


def _noise(numbers: random.Random) -> Callable[[bytearray], bytearray]:
    def change(data: bytearray) -> bytearray:
        data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        return data

    return change


def _zero(data: bytearray) -> bytearray:
    return bytearray(len(data))


def tensors(numbers: random.Random, run: Path) -> int:
    """Weights or moments zeroed, or bits flipped, from an epoch on or in one."""
    forger, first = Forger(run), numbers.randint(1, EPOCHS)
    last = numbers.choice((first, EPOCHS))
    forger.weights(first, last, numbers.choice((_zero, _noise(numbers))), numbers.choice(("model/", "optimizer/")))
    forger.write()
    return first


def numbers_in_all_files(numbers: random.Random, run: Path) -> int:
    forger, epoch = Forger(run), numbers.randint(1, EPOCHS)
    forger.scale(numbers.choice(("loss", "iou")), epoch, 1 + numbers.choice((-0.5, 0.5, 1e-3, 1e-9)))
    forger.write()
    return epoch


def relabelled(numbers: random.Random, run: Path) -> int:
    forger = Forger(run)
    claims = {"TRAIN.SEED": 7, "TRAIN.LR": 9e-4, "TRAIN.WEIGHT_DECAY": 3e-4, "TRAIN.GRAD_CLIP_NORM": 0.2}
    claims |= {"TRAIN.ENCODER_MULTIPLIER": 0.5, "DATA.MAX_SAMPLE_INTERVAL": 5, "DATA.SEARCH.CENTER_JITTER": 2.5}
    forger.relabel(*numbers.choice(sorted(claims.items())))
    forger.write()
    return 1


def exchanged(numbers: random.Random, run: Path) -> int:
    forger = Forger(run)
    one, other = sorted(numbers.sample(range(1, EPOCHS + 1), 2))
    first, second = forger.epochs[one], forger.epochs[other]
    first.tensors, second.tensors = second.tensors, first.tensors
    forger.write()
    return one


def one_file(numbers: random.Random, run: Path) -> int:
    """One manifest, without its digests."""
    manifest = run / "checkpoints" / f"SEQTRACK_ep{numbers.randint(1, EPOCHS):04d}.json"
    field = numbers.choice(("loss", "iou", "phase", "data_digest", "config_digest", "step", "parent_sha256", "device"))
    values = json.loads(manifest.read_text())
    old = values[field]
    values[field] = "0" * 64 if "digest" in field or "sha256" in field else 2 if isinstance(old, int) else "abacus"
    values[field] = old / 2 if isinstance(old, float) else values[field]
    manifest.write_text(json.dumps(values))
    return 1


def copied(numbers: random.Random, run: Path) -> int:
    """Phase 2 is phase 1 with another number on it."""
    other = run.parent / "phase_2"
    shutil.rmtree(other)
    shutil.copytree(run, other)
    forger = Forger(other)
    for one in forger.epochs.values():
        one.manifest["phase"] = 2
    for record in forger.records:
        record["phase"] = 2
    forger.write()
    return 1


FORGERIES = (tensors, numbers_in_all_files, relabelled, exchanged, one_file, copied)


@pytest.mark.timeout(3600)
def test_two_hundred_forgeries_are_refused_or_refuted(honest: Path, demo_data: Path, tmp_path: Path) -> None:
    passed = []
    for number in range(200):
        numbers = random.Random(number)
        forge = FORGERIES[number % len(FORGERIES)]
        output = Path(shutil.copytree(honest, tmp_path / str(number)))
        run = output / "phase_1"
        epoch = forge(numbers, run)
        if not (inconsistencies(run) or (forge is copied and copies(run, output / "phase_2"))):
            ended = audit(output, demo_data, "--epochs", "all")
            text = (run / "audit.json").read_text() if ended.code == 1 else "{}"
            found = AuditRecord.model_validate_json(text).segments if ended.code == 1 else []
            first = next((one.difference for one in found if one.difference is not None), None)
            if verdict(ended) != (1, "refuted") or first is None or first.epoch != epoch:
                passed.append((number, forge.__name__, epoch, first, ended.said[-300:]))
        shutil.rmtree(output)
    assert passed == []


@pytest.mark.timeout(3600)
def test_a_hundred_audits_of_honest_runs_raise_no_alarm(honest: Path, demo_data: Path, tmp_path: Path) -> None:
    interrupted = tmp_path / "interrupted"
    env = environment(interrupted, demo_data, {"TRAIN.SAVE_INTERVAL_S": "0.05"}, EPOCHS=EPOCHS)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, None):
        with start(env) as running:
            if number is not None:
                seen = len(list(interrupted.rglob("*.json")))
                running.until(lambda seen=seen: len(list(interrupted.rglob("*.json"))) > seen + 1)  # type: ignore[misc]
                running.signal(number)
            running.end()
    pair = tmp_path / "pair"
    completed(environment(pair, demo_data, EPOCHS=EPOCHS, NPROC=2))
    alarms = []
    for number in range(100):
        output, run = [(honest, "phase_1"), (honest, "phase_2"), (interrupted, "phase_1"), (pair, "phase_1")][
            number % 4
        ]
        words = ("--epochs", "all") if number % 5 == 0 else ("--nonce", str(number), "--steps", str(1 + number % 6))
        ended = audit(output, demo_data, *words, run=run)
        if inconsistencies(output / run) or verdict(ended) != (0, "confirmed"):
            alarms.append((number, ended.said[-300:], inconsistencies(output / run)))
    assert alarms == []
