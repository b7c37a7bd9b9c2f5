"""Read the files of an output folder for report and card. A missing file is `None` or empty. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from seqtrack.checkpoints.side_files import (
    Certificate,
    DatasetRecord,
    EnvironmentRecord,
    EpochRecord,
    EvaluatedTracker,
    EvaluationRecord,
    RunRecord,
    Strict,
    ValidationRecord,
    read_metrics,
    read_side_file,
    shorten,
)
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.run_dir import (
    CERTIFICATE_FILE,
    CHECKPOINTS,
    COMPARISON,
    CONFIG_FILE,
    DATASET_FILE,
    ENVIRONMENT_FILE,
    EVALUATION,
    EVALUATION_FILE,
    LOGS,
    PHASES,
    PLOTS,
    RUN_FILE,
    metrics_path,
)
from seqtrack.uploads.state import UploadState, read_state

_RESUME_WORDS = ("resumes after step", "starts from", "guarantee", "stopped on request", "moved aside",
                 "first difference")  # fmt: skip
_FIRST_PLOTS = ("epochs", "epochs_by_class", "success", "precision", "norm_precision")


@dataclass(frozen=True)
class LogLine:
    """A line of a text log; `number` counts from 1."""

    file: Path
    number: int
    text: str


@dataclass(frozen=True)
class RunFiles:
    """One phase's folder: the content of each file; None or empty where there is no such file."""

    folder: Path
    run: RunRecord | None
    environment: EnvironmentRecord | None
    dataset: DatasetRecord | None
    config: Config | None
    epochs: list[EpochRecord]
    validations: list[ValidationRecord]
    manifests: list[Manifest]
    log: list[LogLine]
    evaluation: EvaluationRecord | None
    plots: list[Path]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def resume_lines(self) -> list[str]:
        """The log lines about interruption and resumption, with file name and line number."""
        found = [line for line in self.log if any(word in line.text for word in _RESUME_WORDS)]
        return [f"{line.file.name}:{line.number}: {line.text}" for line in found]

    @property
    def last_result(self) -> EvaluatedTracker | None:
        """The evaluation of the last checkpoint."""
        trackers = self.evaluation.trackers if self.evaluation else []
        return next((one for one in reversed(trackers) if one.kind == "checkpoint"), None)

    @property
    def evaluation_plots(self) -> list[Path]:
        """Over the epochs first, then curves, then bars."""
        plots = {path.stem: path for path in sorted((self.folder / EVALUATION / PLOTS).glob("*.png"))}
        return [plots[name] for name in dict.fromkeys((*_FIRST_PLOTS, *plots)) if name in plots]


class Upload(Strict):
    """One file that the uploader verified."""

    path: str
    size: int
    sha256: str | None
    state: str
    commit: str | None

    @property
    def short_commit(self) -> str | None:
        """The start of the commit's hash; None for a folder target, which records something else there."""
        commit = self.commit or ""
        return commit[:12] if len(commit) >= 12 and set(commit) <= set("0123456789abcdef") else None


@dataclass(frozen=True)
class OutputFiles:
    """A whole output folder; `uploader` is the uploader's target and state."""

    folder: Path
    phases: list[RunFiles]
    certificate: Certificate | None
    comparison_plots: list[Path]
    uploader: tuple[str, str] | None
    uploads: list[Upload]

    def phase(self, name: str) -> RunFiles | None:
        """The phase of that folder name."""
        return next((phase for phase in self.phases if phase.name == name), None)

    @property
    def synthetic(self) -> bool:
        """Whether any of the data were drawn by code."""
        return any(source.synthetic for phase in self.phases if phase.dataset for source in phase.dataset.sources)


def read_output(folder: Path) -> OutputFiles:
    """Read everything that a report needs.

    Raises:
        UserError: no phase folder, or an invalid file.
    """
    phases = [folder / name for name in PHASES if (folder / name).is_dir()]
    if not phases:
        raise UserError(
            f"{folder} (OUTPUT_DIR) has neither phase_1 nor phase_2; there is nothing to report",
            code="report.nothing",
        )
    state = read_state(folder)
    return OutputFiles(
        folder=folder,
        phases=[_read_phase(phase) for phase in phases],
        certificate=read_side_file(folder / COMPARISON / CERTIFICATE_FILE, Certificate),
        comparison_plots=sorted((folder / COMPARISON).glob("*.png")),
        uploader=(state.target, state.state) if state is not None else None,
        uploads=_uploads(state),
    )


def _read_phase(folder: Path) -> RunFiles:
    metrics = read_metrics(metrics_path(folder))
    if metrics.problems:
        raise UserError(shorten(metrics.problems))
    stored = folder / CONFIG_FILE
    return RunFiles(
        folder=folder,
        run=read_side_file(folder / RUN_FILE, RunRecord),
        environment=read_side_file(folder / ENVIRONMENT_FILE, EnvironmentRecord),
        dataset=read_side_file(folder / DATASET_FILE, DatasetRecord),
        config=load_config(str(stored)) if stored.is_file() else None,
        epochs=metrics.of(EpochRecord),
        validations=metrics.of(ValidationRecord),
        manifests=list_checkpoints(folder / CHECKPOINTS, kinds=("epoch",)),
        log=_read_logs(folder / LOGS),
        evaluation=read_side_file(folder / EVALUATION / EVALUATION_FILE, EvaluationRecord),
        plots=sorted((folder / PLOTS).glob("*.png")),
    )


def _read_logs(folder: Path) -> list[LogLine]:
    return [
        LogLine(path, number, line)
        for path in sorted(folder.glob("*.log"))
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
    ]


def _uploads(state: UploadState | None) -> list[Upload]:
    """The files that the uploader verified on its target."""
    files = sorted(state.files.items()) if state is not None else []
    return [Upload(path=path, size=o.stamp[0], sha256=o.sha256, state="verified", commit=o.commit) for path, o in files]
