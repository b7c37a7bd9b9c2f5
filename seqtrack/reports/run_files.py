"""What a run has left on disk, read for the report: a file that is not there is `None` or empty, never a guess.

Knows the places and forms of the files of an output folder; knows no prose. Needs no torch.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.files import DamagedFileError, read_json_object
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.engine.log import read_metrics
from seqtrack.errors import UserError
from seqtrack.uploads.journal import JOURNAL_NAME, STATE_FOLDER


@dataclass(frozen=True)
class LogLine:
    """A line of a human log: the file, the line's number from 1, and its text."""

    file: Path
    number: int
    text: str


@dataclass(frozen=True)
class RunFiles:
    """One phase's folder. Every field is what its file holds; None or empty where there is no such file."""

    folder: Path
    run: dict[str, Any] | None
    environment: dict[str, Any] | None
    dataset: dict[str, Any] | None
    config: Config | None
    epochs: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    manifests: list[Manifest]
    log: list[LogLine]
    evaluation: dict[str, Any] | None
    plots: list[Path]

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Upload:
    """One file as the sidecar's journal knows it."""

    path: str
    size: int
    sha256: str | None
    state: str
    commit: str | None


@dataclass(frozen=True)
class OutputFiles:
    """A whole output folder: phases, the comparison, what was uploaded."""

    folder: Path
    phases: list[RunFiles]
    certificate: dict[str, Any] | None
    comparison_plots: list[Path]
    upload_status: dict[str, Any] | None
    uploads: list[Upload]


def read_output(folder: Path) -> OutputFiles:
    """Read everything that a report speaks of.

    Raises:
        UserError: there is no phase folder, or a file there is damaged.
    """
    phases = [folder / name for name in ("phase_1", "phase_2") if (folder / name).is_dir()]
    if not phases:
        raise UserError(f"{folder} holds neither phase_1 nor phase_2; there is nothing to report. OUTPUT_DIR names it")
    return OutputFiles(
        folder=folder,
        phases=[_read_phase(phase) for phase in phases],
        certificate=_read(folder / "comparison" / "certificate.json"),
        comparison_plots=sorted((folder / "comparison").glob("*.png")),
        upload_status=_read(folder / STATE_FOLDER / "status.json"),
        uploads=_read_journal(folder / STATE_FOLDER / JOURNAL_NAME),
    )


def _read_phase(folder: Path) -> RunFiles:
    records = read_metrics(folder / "logs" / "metrics.jsonl")
    stored = folder / "config.yaml"
    return RunFiles(
        folder=folder,
        run=_read(folder / "run.json"),
        environment=_read(folder / "environment.json"),
        dataset=_read(folder / "dataset.json"),
        config=load_config(str(stored)) if stored.is_file() else None,
        epochs=[record for record in records if record.get("type") == "epoch"],
        validations=[record for record in records if record.get("type") == "validation"],
        manifests=list_checkpoints(folder / "checkpoints", kinds=("epoch",)),
        log=_read_logs(folder / "logs"),
        evaluation=_read(folder / "evaluation" / "evaluation.json"),
        plots=sorted((folder / "plots").glob("*.png")),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        raise UserError(f"{error}; a report from damaged files would be a guess") from error


def _read_logs(folder: Path) -> list[LogLine]:
    return [
        LogLine(path, number, line)
        for path in sorted(folder.glob("*.log"))
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
    ]


def _read_journal(place: Path) -> list[Upload]:
    """The sidecar's rows, read without writing; empty where there is no journal or it cannot be read."""
    if not place.is_file():
        return []
    try:
        base = sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            rows = base.execute("SELECT path, size, sha256, state, commit_oid FROM files ORDER BY path").fetchall()
        finally:
            base.close()
    except sqlite3.Error as error:
        raise UserError(f"{place}: cannot be read ({error}); stop the uploader or move the file away") from error
    return [Upload(*row) for row in rows]
