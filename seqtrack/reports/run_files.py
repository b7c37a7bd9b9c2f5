"""Read the files of an output folder for report and card. A missing file is `None` or empty. Needs no torch."""

import logging
from dataclasses import dataclass
from pathlib import Path

from seqtrack import run_dir
from seqtrack.checkpoints.side_files import (
    Certificate,
    DatasetRecord,
    EnvironmentRecord,
    EpochRecord,
    EvaluatedTracker,
    EvaluationRecord,
    RunRecord,
    ValidationRecord,
    read_metrics,
    read_side_file,
)
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.uploads.state import UploadState, read_state

logger = logging.getLogger(__name__)

_RESUME_WORDS = ("resumes after step", "starts from", "guarantee", "stopped on request", "moved aside",
                 "first difference")  # fmt: skip
_FIRST_PLOTS = ("epochs", "epochs_by_class", "success", "precision", "norm_precision")


@dataclass(frozen=True)
class RunFiles:
    """One phase's folder: the content of each file; None or empty where there is no such file.

    `resume_lines` are the log lines about interruption and resumption, with file name and line number;
    `evaluation_plots` are those over the epochs first, then curves, then bars.
    """

    folder: Path
    run: RunRecord | None
    environment: EnvironmentRecord | None
    dataset: DatasetRecord | None
    config: Config | None
    epochs: list[EpochRecord]
    validations: list[ValidationRecord]
    manifests: list[Manifest]
    resume_lines: list[str]
    evaluation: EvaluationRecord | None
    plots: list[Path]
    evaluation_plots: list[Path]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def last_result(self) -> EvaluatedTracker | None:
        """The evaluation of the last checkpoint."""
        trackers = self.evaluation.trackers if self.evaluation else []
        return next((one for one in reversed(trackers) if one.kind == "checkpoint"), None)


@dataclass(frozen=True)
class OutputFiles:
    """A whole output folder."""

    folder: Path
    phases: list[RunFiles]
    certificate: Certificate | None
    comparison_plots: list[Path]
    uploads: UploadState | None

    @property
    def synthetic(self) -> bool:
        """Whether any of the data were drawn by code."""
        return any(source.synthetic for phase in self.phases if phase.dataset for source in phase.dataset.sources)


def read_output(folder: Path) -> OutputFiles:
    """Read everything that a report needs.

    Raises:
        UserError: no phase folder, or an invalid file.
    """
    phases = [folder / name for name in run_dir.PHASES if (folder / name).is_dir()]
    if not phases:
        text = f"{folder} (OUTPUT_DIR) has neither phase_1 nor phase_2; there is nothing to report"
        raise UserError(text, code="report.nothing")
    runs = [_read_phase(phase) for phase in phases]
    path = folder / run_dir.COMPARISON / run_dir.CERTIFICATE_FILE
    certificate = read_side_file(path, Certificate)
    if certificate is not None and not _describes(certificate, runs):
        logger.warning("%s describes other runs than those next to it and is not used; verify the phases again", path)
        certificate = None
    return OutputFiles(
        folder=folder,
        phases=runs,
        certificate=certificate,
        comparison_plots=sorted((folder / run_dir.COMPARISON).glob("*.png")) if certificate else [],
        uploads=read_state(folder),
    )


def _describes(certificate: Certificate, phases: list[RunFiles]) -> bool:
    """Whether a certificate compared exactly these two runs: the same starts, and the same bytes of every epoch."""
    if [phase.name for phase in phases] != list(run_dir.PHASES):
        return False
    for index, phase in enumerate(phases):
        certified = certificate.runs[index].run
        if certified is None or phase.run is None or certified.starts != phase.run.starts:
            return False
        digests = {one.epoch: one.sha256[index] for one in certificate.epochs}
        if any(digests.get(one.epoch, one.sha256) != one.sha256 for one in phase.manifests):
            return False
    return True


def _read_phase(folder: Path) -> RunFiles:
    metrics = read_metrics(run_dir.metrics_path(folder))
    if metrics.problems:
        raise UserError(metrics.problems)
    stored = folder / run_dir.CONFIG_FILE
    plots = {path.stem: path for path in sorted((folder / run_dir.EVALUATION / run_dir.PLOTS).glob("*.png"))}
    return RunFiles(
        folder=folder,
        run=read_side_file(folder / run_dir.RUN_FILE, RunRecord),
        environment=read_side_file(folder / run_dir.ENVIRONMENT_FILE, EnvironmentRecord),
        dataset=read_side_file(folder / run_dir.DATASET_FILE, DatasetRecord),
        config=load_config(str(stored)) if stored.is_file() else None,
        epochs=metrics.of(EpochRecord),
        validations=metrics.of(ValidationRecord),
        manifests=list_checkpoints(folder / run_dir.CHECKPOINTS, kinds=("epoch",)),
        resume_lines=[
            f"{path.name}:{number}: {line}"
            for path in sorted((folder / run_dir.LOGS).glob("*.log"))
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
            if any(word in line for word in _RESUME_WORDS)
        ],
        evaluation=read_side_file(folder / run_dir.EVALUATION / run_dir.EVALUATION_FILE, EvaluationRecord),
        plots=sorted((folder / run_dir.PLOTS).glob("*.png")),
        evaluation_plots=[plots[name] for name in dict.fromkeys((*_FIRST_PLOTS, *plots)) if name in plots],
    )
