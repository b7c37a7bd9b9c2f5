"""Read the files of an output folder for report and card. A missing file is `None` or empty. Needs no torch."""

import logging
from pathlib import Path

from seqtrack import run_dir
from seqtrack.checkpoints import side_files
from seqtrack.checkpoints.side_files import read_side_file
from seqtrack.checkpoints.store import list_checkpoints
from seqtrack.config.loader import load_config
from seqtrack.errors import UserError
from seqtrack.uploads.state import read_state

logger = logging.getLogger(__name__)

_RESUME_WORDS = ("resumes after step", "starts from", "guarantee", "stopped on request", "moved aside",
                 "first difference")  # fmt: skip
_FIRST_PLOTS = ("epochs", "epochs_by_class", "success", "precision", "norm_precision")


class RunFiles:
    """One phase's folder: the content of each file; None or empty where there is no such file.

    `resume_lines` are the log lines about interruption and resumption, with file name and line number;
    `evaluation_plots` are those over the epochs first, then curves, then bars; `last_result` is the last checkpoint's.

    Raises:
        UserError: an invalid file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.run = read_side_file(folder / run_dir.RUN_FILE, side_files.RunRecord)
        self.environment = read_side_file(folder / run_dir.ENVIRONMENT_FILE, side_files.EnvironmentRecord)
        self.dataset = read_side_file(folder / run_dir.DATASET_FILE, side_files.DatasetRecord)
        evaluation = folder / run_dir.EVALUATION
        self.evaluation = read_side_file(evaluation / run_dir.EVALUATION_FILE, side_files.EvaluationRecord)
        trackers = self.evaluation.trackers if self.evaluation else []
        self.last_result = next((one for one in reversed(trackers) if one.kind == "checkpoint"), None)
        stored = folder / run_dir.CONFIG_FILE
        self.config = load_config(str(stored)) if stored.is_file() else None
        metrics = side_files.read_metrics(run_dir.metrics_path(folder))
        if metrics.problems:
            raise UserError(metrics.problems)
        self.epochs, self.validations = metrics.of(side_files.EpochRecord), metrics.of(side_files.ValidationRecord)
        self.manifests = list_checkpoints(folder / run_dir.CHECKPOINTS, kinds=("epoch",))
        self.resume_lines = [
            f"{path.name}:{number}: {line}"
            for path in sorted((folder / run_dir.LOGS).glob("*.log"))
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
            if any(word in line for word in _RESUME_WORDS)
        ]
        self.plots = sorted((folder / run_dir.PLOTS).glob("*.png"))
        plots = {path.stem: path for path in sorted((evaluation / run_dir.PLOTS).glob("*.png"))}
        self.evaluation_plots = [plots[name] for name in dict.fromkeys((*_FIRST_PLOTS, *plots)) if name in plots]


class OutputFiles:
    """A whole output folder.

    Raises:
        UserError: no phase folder, or an invalid file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.phases = [RunFiles(folder / name) for name in run_dir.PHASES if (folder / name).is_dir()]
        if not self.phases:
            text = f"{folder} (OUTPUT_DIR) has neither phase_1 nor phase_2; there is nothing to report"
            raise UserError(text, code="report.nothing")
        comparison = folder / run_dir.COMPARISON
        self.certificate = read_side_file(comparison / run_dir.CERTIFICATE_FILE, side_files.Certificate)
        if self.certificate is not None and not _describes(self.certificate, self.phases):
            logger.warning("%s describes other runs than those next to it and is not used; verify again", comparison)
            self.certificate = None
        self.comparison_plots = sorted(comparison.glob("*.png")) if self.certificate else []
        self.uploads = read_state(folder)
        # Whether any of the data were drawn by code.
        self.synthetic = any(one.synthetic for run in self.phases if run.dataset for one in run.dataset.sources)


def _describes(certificate: side_files.Certificate, phases: list[RunFiles]) -> bool:
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
