"""Report a comparison: the table, the files of the comparison folder, the exit code of phase 2. Needs no torch."""

import logging
from collections.abc import Sequence
from pathlib import Path

from seqtrack import markdown
from seqtrack.checkpoints.safetensors_io import write_atomic, write_json
from seqtrack.checkpoints.side_files import Certificate, RunRecord
from seqtrack.errors import UserError
from seqtrack.markdown import Markdown, number
from seqtrack.reports.compare import compare_runs
from seqtrack.reports.plots import plot_comparison
from seqtrack.reports.rendering import render_markdown
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON, PHASES

logger = logging.getLogger(__name__)


def table(certificate: Certificate) -> Markdown:
    """The comparison epoch by epoch."""
    names = [run.folder for run in certificate.runs]
    heading = ["epoch", *(f"{what} {name}" for what in ("loss", "IoU") for name in names), "sha256", "verdict"]
    rows = []
    for one in certificate.epochs:
        numbers = [number(value, 6) for value in (*one.loss, *one.iou)]
        digests = " / ".join(digest[:12] for digest in dict.fromkeys(one.sha256))
        rows.append([str(one.epoch), *numbers, digests, ", ".join(one.differences) or "same"])
    return markdown.table(heading, rows)


def write_comparison(certificate: Certificate, runs: Sequence[Path], folder: Path) -> None:
    """Write plots, `comparison.md` and `certificate.json` into `folder`, or log why that failed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot_comparison(runs, folder, verdict=certificate.verdict)
        text = render_markdown("comparison.md.j2", certificate=certificate, comparison_table=table(certificate))
        write_atomic(folder / "comparison.md", text.encode())
        write_json(folder / CERTIFICATE_FILE, certificate.model_dump())
    except OSError as error:
        # The verdict itself needs no file, and a finished run is not undone by a full disk.
        logger.warning("plots and certificate could not be written (%s)", error)


def report_lines(certificate: Certificate) -> list[str]:
    """Table, remarks, first difference, and the verdict as the last line."""
    first = [f"first difference: {certificate.first_difference}"] if certificate.first_difference else []
    return [*table(certificate).splitlines(), *certificate.remarks, *first, certificate.verdict]


def conclude(output_dir: Path, run: RunRecord) -> int:
    """After phase 2: compare it with phase 1, if that is next to it.

    Returns:
        1 when the runs differ although bitwise equality was guaranteed, otherwise 0.
    """
    folders = [output_dir / name for name in PHASES]
    if run.phase != 2 or not folders[0].is_dir():
        return 0
    try:
        certificate = compare_runs(*folders)
    except UserError as error:
        logger.info("not compared with phase 1: %s", error)
        return 0
    write_comparison(certificate, folders, output_dir / COMPARISON)
    first = certificate.runs[0].run
    guaranteed = run.starts[-1].guarantee == "bitwise"
    if first is not None and first.config_digest != run.config_digest:
        guaranteed = False
        logger.info("phase 1 has another configuration: equality is not guaranteed")
    for line in report_lines(certificate):
        logger.info("%s", line)
    return int(certificate.verdict == "differs" and guaranteed)
