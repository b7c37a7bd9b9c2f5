"""Many forgeries and many honest runs: every forgery is refused or refuted, and no honest run ever is."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import completed, environment, start

from proof.forger import Forger, replace_frames
from proof.test_audit import audit, certificate, verdict
from seqtrack.reports.consistency import copies, inconsistencies

pytestmark = pytest.mark.long

EPOCHS, RESUMED_AFTER = 5, 2


@dataclass
class Attack:
    """A copy of an output folder to forge, the numbers to choose by, and a run of another seed and of another rate."""

    output: Path
    numbers: random.Random
    other_runs: list[Path]
    data: Path
    phase: str = "phase_1"

    @property
    def run(self) -> Path:
        return self.output / self.phase

    def copy_phase_1(self) -> Path:
        """Make phase 2 a copy of phase 1; it is the run from here on."""
        source, self.phase = self.run, "phase_2"
        shutil.rmtree(self.run)
        return Path(shutil.copytree(source, self.run))


# Returns the first epoch that was forged; None where it depends on which frames are drawn.
Forgery = Callable[[Attack], int | None]


@pytest.fixture(scope="module")
def honest(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("honest")
    completed(environment(output, demo_data, EPOCHS=EPOCHS))
    completed(environment(output, demo_data, EPOCHS=EPOCHS, PHASE=2, RESUME_EPOCH=RESUMED_AFTER))
    return output


@pytest.fixture(scope="module")
def other_runs(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("others")
    for name, key, value in (("seed", "TRAIN.SEED", 7), ("rate", "TRAIN.LR", 5e-4)):
        completed(environment(folder / name, demo_data, {key: value}, EPOCHS=EPOCHS))
    return sorted(folder.glob("*/phase_1"))


def tensors(attack: Attack) -> int:
    """Weights or moments zeroed, or bits flipped, from an epoch on or in one."""

    def zero(data: bytearray) -> bytearray:
        return bytearray(len(data))

    def flip(data: bytearray) -> bytearray:
        data[attack.numbers.randrange(len(data))] ^= 1 << attack.numbers.randrange(8)
        return data

    forger, first = Forger(attack.run), attack.numbers.randint(1, EPOCHS)
    last = attack.numbers.choice((first, EPOCHS))
    component = attack.numbers.choice(("model/", "optimizer/"))
    forger.weights(first, last, attack.numbers.choice((zero, flip)), component)
    forger.write()
    return first


def numbers_in_all_files(attack: Attack) -> int:
    """Loss or IoU of an epoch, its intervals included."""
    forger, epoch = Forger(attack.run), attack.numbers.randint(1, EPOCHS)
    forger.scale(attack.numbers.choice(("loss", "iou")), epoch, 1 + attack.numbers.choice((-0.5, 0.5, 1e-3, 1e-9)))
    forger.write()
    return epoch


def history(attack: Attack) -> int:
    """A figure of an epoch in its record and in the history of every checkpoint."""
    forger, epoch = Forger(attack.run), attack.numbers.randint(1, EPOCHS)
    claims = {"grad_norm": 0.5, "lr": [5e-4, 5e-4], "skipped_steps": 3, "checksum": "0" * 16, "iou": 0.9, "loss": 1.0}
    forger.claim(epoch, *attack.numbers.choice(sorted(claims.items())))
    forger.write()
    return epoch


def relabelled(attack: Attack) -> int:
    """Another seed, rate or other value of the recipe in every file."""
    forger = Forger(attack.run)
    claims = {"TRAIN.SEED": 7, "TRAIN.LR": 9e-4, "TRAIN.WEIGHT_DECAY": 3e-4, "TRAIN.GRAD_CLIP_NORM": 0.2}
    claims |= {"TRAIN.ENCODER_MULTIPLIER": 0.5, "DATA.MAX_SAMPLE_INTERVAL": 5, "DATA.SEARCH.CENTER_JITTER": 2.5}
    forger.relabel(*attack.numbers.choice(sorted(claims.items())))
    forger.write()
    return 1


def exchanged(attack: Attack) -> int:
    """The tensors of two epochs."""
    forger = Forger(attack.run)
    one, other = sorted(attack.numbers.sample(range(1, EPOCHS + 1), 2))
    first, second = forger.epochs[one], forger.epochs[other]
    first.tensors, second.tensors = second.tensors, first.tensors
    forger.write()
    return one


def spliced(attack: Attack) -> int:
    """Another run's epochs from one on."""
    forger, first = Forger(attack.run), attack.numbers.randint(2, EPOCHS)
    forger.splice(Forger(attack.numbers.choice(attack.other_runs)), first)
    forger.write()
    return first


def frames_replaced(attack: Attack) -> None:
    """Trained on data whose digest is that of the honest data."""
    data = Path(shutil.copytree(attack.data, attack.output / "data"))
    sequences = sorted(data.glob("demo/*/*/img"))
    replace_frames(attack.numbers.sample(sequences, len(sequences) // 2))
    shutil.rmtree(attack.run)
    completed(environment(attack.output, data, EPOCHS=EPOCHS))


def one_file(attack: Attack) -> int:
    """One manifest, without its digests."""
    manifest = attack.run / "checkpoints" / f"SEQTRACK_ep{attack.numbers.randint(1, EPOCHS):04d}.json"
    fields = ("loss", "iou", "phase", "data_digest", "config_digest", "step", "parent_sha256", "device")
    field = attack.numbers.choice(fields)
    values = json.loads(manifest.read_text())
    old = values[field]
    values[field] = "0" * 64 if "digest" in field or "sha256" in field else 2 if isinstance(old, int) else "abacus"
    values[field] = old / 2 if isinstance(old, float) else values[field]
    manifest.write_text(json.dumps(values))
    return 1


def copied(attack: Attack) -> int:
    """Phase 2 is phase 1 with another number on it."""
    forger = Forger(attack.copy_phase_1())
    for described in (*(one.manifest for one in forger.epochs.values()), *forger.records):
        described["phase"] = 2
    forger.write()
    return 1


def copied_and_edited(attack: Attack) -> int:
    """Phase 2 is the end of phase 1 with a start and times of its own, and other figures."""
    forger, epoch = Forger(attack.copy_phase_1()), attack.numbers.randint(RESUMED_AFTER + 1, EPOCHS)
    forger.become_phase_2(RESUMED_AFTER)
    for record in forger.records:
        record["elapsed_s"] *= attack.numbers.uniform(0.9, 1.1)
    forger.scale(attack.numbers.choice(("loss", "iou")), epoch, attack.numbers.uniform(0.5, 1.5))
    forger.write()
    return epoch


FORGERIES: tuple[Forgery, ...] = (
    tensors,
    numbers_in_all_files,
    history,
    relabelled,
    exchanged,
    spliced,
    frames_replaced,
    one_file,
    copied,
    copied_and_edited,
)


@pytest.mark.timeout(3600)
def test_two_hundred_forgeries_are_refused_or_refuted(
    honest: Path, other_runs: list[Path], demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passed, counts = [], {(forge.__name__, how): 0 for forge in FORGERIES for how in ("refused", "refuted")}
    for number in range(200):
        forge, output = FORGERIES[number % len(FORGERIES)], Path(shutil.copytree(honest, tmp_path / str(number)))
        attack = Attack(output, random.Random(number), other_runs, demo_data)
        epoch = forge(attack)
        if inconsistencies(attack.run) or (attack.phase == "phase_2" and copies(output / "phase_1", attack.run)):
            counts[forge.__name__, "refused"] += 1
        else:
            ended = audit(output, demo_data, "--epochs", "all", run=attack.phase)
            found = certificate(output, attack.phase).segments if ended.code == 1 else []
            first = next((one.difference for one in found if one.difference is not None), None)
            if verdict(ended) != (1, "refuted") or first is None or epoch not in (first.epoch, None):
                passed.append((number, forge.__name__, epoch, first, ended.said[-300:]))
            else:
                counts[forge.__name__, "refuted"] += 1
        shutil.rmtree(output)
    with capsys.disabled():
        print("", *(f"{name}: {count} {how}" for (name, how), count in counts.items() if count), sep="\n")
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
    thin = tmp_path / "thin"
    completed(environment(thin, demo_data, {"TRAIN.CHECKPOINT_EPOCHS": 2}, EPOCHS=EPOCHS))
    pair = tmp_path / "pair"
    completed(environment(pair, demo_data, EPOCHS=EPOCHS, NPROC=2))
    runs = [(honest, "phase_1"), (honest, "phase_2"), (interrupted, "phase_1"), (thin, "phase_1"), (pair, "phase_1")]
    alarms = []
    for number in range(100):
        output, run = runs[number % len(runs)]
        words = ("--epochs", "all") if number % 7 == 0 else ("--nonce", str(number), "--steps", str(1 + number % 6))
        ended = audit(output, demo_data, *words, run=run)
        if inconsistencies(output / run) or verdict(ended) != (0, "confirmed"):
            alarms.append((number, ended.said[-300:], inconsistencies(output / run)))
    assert alarms == []
