"""The model card says what was measured, all of it, and nothing else."""

import json
import re
from pathlib import Path

import pytest
import yaml
from uploads.harness import put

from seqtrack.checkpoints.store import FORMAT
from seqtrack.errors import UserError
from seqtrack.reports.card import model_card


def manifest(output: Path, epoch: int, *, loss: float | None = 4.25, phase: int = 1) -> Path:
    values = {
        "format": FORMAT,
        "kind": "epoch",
        "epoch": epoch,
        "step": epoch * 207,
        "sample": 0,
        "file": f"SEQTRACK_ep{epoch:04d}.safetensors",
        "bytes": 12_300_000,
        "sha256": f"{epoch}" * 64,
        "weights_sha256": "ab" * 32,
        "parts": {},
        "loss": loss,
        "iou": 0.1 * epoch,
        "parent_sha256": None,
        "config_digest": "cd" * 32,
        "data_digest": "ef" * 32,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.4.1"},
        "device": "CPU",
    }
    return put(output / f"phase_{phase}" / "checkpoints" / f"SEQTRACK_ep{epoch:04d}.json", json.dumps(values).encode())


def dataset(name: str, classes: list[str], *, synthetic: bool = False) -> bytes:
    counts = {"sequences": 20, "frames": 1000, "visible": 900, "absent": 100, "missing": 0}
    source = {
        "name": name, "split": "train", "synthetic": synthetic, "sequences": 40, "frames": 2000, "names": [],
        "frame_bytes": 1, "classes": dict.fromkeys(classes, counts), "digest": "0" * 64,
    }  # fmt: skip
    return json.dumps({"format": 2, "frames_covered_by": "size", "sources": [source], "digest": "0" * 64}).encode()


def certificate(verdict: str = "identical") -> bytes:
    values = {
        "format": "seqtrack-certificate/1", "verdict": verdict, "first_difference": None, "remarks": [], "created": "",
        "runs": [{"folder": "phase_1"}, {"folder": "phase_2"}], "epochs": [],
    }  # fmt: skip
    return json.dumps(values).encode()


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    for epoch in (1, 2):
        manifest(tmp_path, epoch)
    record = {
        "type": "epoch", "phase": 1, "epoch": 1, "step": 207, "loss": 4.25, "iou": 0.1, "samples": 3312, "steps": 207,
        "lr": [1e-4], "grad_norm": 1.0, "time_s": 10.3, "elapsed_s": 10.3, "samples_per_s": 321.5, "data_wait_s": 0.0,
        "data_wait_share": 0.0, "skipped_steps": 0, "max_memory_allocated": None, "max_memory_reserved": None,
    }  # fmt: skip
    put(tmp_path / "phase_1" / "logs" / "metrics.jsonl", json.dumps(record).encode() + b'\n{"cut')
    put(tmp_path / "phase_1" / "plots" / "phase_1_loss.png", b"png")
    put(tmp_path / "phase_1" / "dataset.json", dataset("DEMO", ["disc", "ring"], synthetic=True))
    return tmp_path


def test_it_holds_the_measured_numbers_plots_and_digests(measured: Path) -> None:
    text = model_card(measured, repo="me/run")
    assert "| 1 | 207 | 4.25000 | 0.10000 | 321.5 | 12.3 | `SEQTRACK_ep0001.safetensors` |" in text
    assert "| 2 | 414 | 4.25000 | 0.20000 | – | 12.3 |" in text, "what was not measured is not made up"
    assert "(phase_1/plots/phase_1_loss.png)" in text
    assert "1" * 64 in text
    assert "2" * 64 in text
    assert "ab" * 32 in text
    assert "cd" * 32 in text
    assert 'hf_hub_download("me/run", "phase_1/checkpoints/SEQTRACK_ep0002.safetensors")' in text
    assert "Verdict" not in text


def test_its_head_is_yaml_and_says_that_synthetic_data_are_synthetic(measured: Path) -> None:
    text = model_card(measured)
    head = yaml.safe_load(text.split("---")[1])
    assert "synthetic-data" in head["tags"]
    assert "datasets" not in head
    assert "synthetic**" in text
    put(measured / "phase_1" / "dataset.json", dataset("LASOT", ["book"]))
    text = model_card(measured)
    assert yaml.safe_load(text.split("---")[1])["datasets"] == ["l-lt/LaSOT"]
    assert "synthetic" not in text


def test_a_verdict_is_quoted_once_there_is_one(measured: Path) -> None:
    manifest(measured, 3, phase=2)
    put(measured / "comparison" / "certificate.json", certificate())
    assert "Verdict: **identical**" in model_card(measured)
    assert "## Phase 2" in model_card(measured)


def test_without_a_checkpoint_there_is_no_card(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError) as refusal:
            model_card(tmp_path)
        assert refusal.value.code == "report.nothing"
        (tmp_path / "phase_1").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("phase_1/dataset.json", b'{"sources": 5}'),
        ("comparison/certificate.json", b'{"verdict": "identical"}'),
        ("phase_1/logs/metrics.jsonl", b'{"type": "epoch", "epoch": []}\n'),
    ],
)
def test_a_damaged_file_is_refused_rather_than_left_out(measured: Path, path: str, content: bytes) -> None:
    put(measured / path, content)
    with pytest.raises(UserError) as refusal:
        model_card(measured)
    assert refusal.value.code == "side_file.invalid" and str(measured / path) in refusal.value.problems[0]


def test_names_from_files_are_text_in_the_card(measured: Path) -> None:
    put(measured / "phase_1" / "dataset.json", dataset("DEMO", ["x\n\n# Injected\n\n<script>", "[a](//evil)"]))
    text = model_card(measured)
    assert not re.search(r"^# Injected", text, flags=re.MULTILINE)
    assert "\\<script\\>" in text and "\\[a\\](//evil)" in text
