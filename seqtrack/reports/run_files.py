"""Read the files of an output folder for report and card. A missing file is `None` or empty. Needs no torch.

What is derived (plots, certificate, evaluation, audit) is drawn again from the records, or used only while it belongs
to them.
"""

import logging
from pathlib import Path

from seqtrack import run_dir
from seqtrack.checkpoints import side_files
from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.checkpoints.side_files import read_side_file
from seqtrack.checkpoints.store import list_checkpoints
from seqtrack.config.loader import load_config
from seqtrack.errors import UserError
from seqtrack.evaluation.plots import draw_plots
from seqtrack.reports.plots import plot_comparison, plot_phase
from seqtrack.run_dir import metrics_path
from seqtrack.uploads.state import read_state

logger = logging.getLogger(__name__)


class RunFiles:
    """One phase's folder: the content of each file; None or empty where there is no such file.

    `evaluation_plots` are those over the epochs first, then curves, then bars; `last_result` is the last checkpoint's;
    `samples` and `tracking` are pictures, each a list of one or none.

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
        self.manifests = list_checkpoints(folder / run_dir.CHECKPOINTS, kinds=("epoch",))
        digests = {one.epoch: one.sha256 for one in self.manifests}
        trackers = self.evaluation.trackers if self.evaluation else []
        if any(digests.get(one.epoch or 0, one.source.get("sha256")) != one.source.get("sha256") for one in trackers):
            logger.warning("%s is of other checkpoints and is not used; evaluate again", evaluation)
            self.evaluation, trackers = None, []
        self.last_result = next((one for one in reversed(trackers) if one.kind == "checkpoint"), None)
        stored = folder / run_dir.CONFIG_FILE
        self.config = load_config(str(stored)) if stored.is_file() else None
        metrics = side_files.read_metrics(metrics_path(folder))
        if metrics.problems:
            raise UserError(metrics.problems)
        self.epochs, self.validations = metrics.of(side_files.EpochRecord), metrics.of(side_files.ValidationRecord)
        self.audit, records = read_side_file(folder / run_dir.AUDIT_FILE, side_files.AuditRecord), metrics_path(folder)
        if self.audit is not None:
            found = self.manifests[-1].sha256 if self.manifests else None, records.is_file() and sha256_file(records)
            if (self.audit.last_sha256, self.audit.metrics_sha256) != found:
                logger.warning("%s is of other checkpoints or records; audit again", folder / run_dir.AUDIT_FILE)
                self.audit = None
        self.plots, drawn = plot_phase(folder), evaluation / run_dir.PLOTS
        if self.evaluation:
            drawn.mkdir(exist_ok=True)
        self.evaluation_plots = [drawn / name for name in draw_plots(self.evaluation, drawn)] if self.evaluation else []
        pictures = [folder / run_dir.PLOTS / run_dir.SAMPLES_FILE], [drawn / run_dir.TRACKING_FILE]
        self.samples, self.tracking = ([path for path in paths if path.is_file()] for paths in pictures)


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
        self.comparison_plots: list[Path] = []
        if self.certificate:
            runs, verdict = [phase.folder for phase in self.phases], self.certificate.verdict
            self.comparison_plots = plot_comparison(runs, comparison, verdict=verdict)
        self.uploads = read_state(folder)
        # Whether any of the data were drawn by code.
        self.synthetic = any(one.synthetic for run in self.phases if run.dataset for one in run.dataset.sources)


def _describes(certificate: side_files.Certificate, phases: list[RunFiles]) -> bool:
    """Whether a certificate compared exactly these two runs: the same starts, and the same bytes, read again."""
    if [phase.name for phase in phases] != list(run_dir.PHASES):
        return False
    for index, phase in enumerate(phases):
        certified = certificate.runs[index].run
        if certified is None or phase.run is None or certified.starts != phase.run.starts:
            return False
        digests = {one.epoch: one.sha256[index] for one in certificate.epochs}
        if any({digests.get(one.epoch, one.sha256)} != {one.sha256, sha256_file(one.path)} for one in phase.manifests):
            return False
    return True
