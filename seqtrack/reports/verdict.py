"""Report a comparison: the table, the certificate, the files of the comparison folder. Needs no torch."""

import contextlib
import logging
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import utc_now, write_atomic
from seqtrack.checkpoints.side_files import (
    Certificate,
    CertifiedEpoch,
    CertifiedRun,
    EnvironmentRecord,
    M,
    RunRecord,
    read_side_file,
    write_side_file,
)
from seqtrack.errors import UserError
from seqtrack.markdown import Markdown, escape, number
from seqtrack.reports.compare import IDENTICAL, Comparison, compare_runs
from seqtrack.reports.plots import plot_comparison
from seqtrack.reports.rendering import render_markdown
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON, ENVIRONMENT_FILE, RUN_FILE

logger = logging.getLogger(__name__)


def table(comparison: Comparison) -> Markdown:
    """The comparison epoch by epoch, as Markdown whose columns are aligned for a terminal."""
    names = [folder.name for folder in comparison.folders]
    head = ["epoch", *(f"loss {name}" for name in names), *(f"IoU {name}" for name in names), "sha256", "verdict"]
    rows = [head] + [
        [
            row.epoch,
            *(number(manifest.loss, 6) for manifest in row.manifests),
            *(number(manifest.iou, 6) for manifest in row.manifests),
            " / ".join(digest[:12] for digest in dict.fromkeys(row.sha256)),
            "same" if row.is_same else ", ".join(row.differences),
        ]
        for row in comparison.rows
    ]
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, [Markdown("-" * width) for width in widths])
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return Markdown("\n".join(f"| {line} |" for line in lines))


def certificate(comparison: Comparison) -> Certificate:
    """The verdict with all its evidence, for `certificate.json`."""
    return Certificate(
        verdict="identical" if comparison.verdict == IDENTICAL else "differs",
        first_difference=comparison.first_difference,
        remarks=comparison.remarks,
        created=utc_now(),
        runs=[_run_facts(folder) for folder in comparison.folders],
        epochs=[
            CertifiedEpoch(
                epoch=row.epoch,
                same=row.is_same,
                differences=row.differences,
                sha256=list(row.sha256),
                weights_sha256=[manifest.weights_sha256 for manifest in row.manifests],
                loss=[manifest.loss for manifest in row.manifests],
                iou=[manifest.iou for manifest in row.manifests],
            )
            for row in comparison.rows
        ],
    )


def _run_facts(folder: Path) -> CertifiedRun:
    """What run.json and environment.json record; an invalid file is a difference already and contributes nothing."""
    facts: dict[str, object] = {"folder": folder.name}
    for record in (_read(folder / RUN_FILE, RunRecord), _read(folder / ENVIRONMENT_FILE, EnvironmentRecord)):
        facts |= record.model_dump(include=set(CertifiedRun.model_fields)) if record else {}
    return CertifiedRun.model_validate(facts)


def _read(path: Path, kind: type[M]) -> M | None:
    with contextlib.suppress(UserError):
        return read_side_file(path, kind)
    return None


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write plots, `comparison.md` and `certificate.json` into `folder`, or log why that failed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot_comparison(comparison.folders, folder, verdict=comparison.verdict)
        names = [place.name for place in comparison.folders]
        text = render_markdown(
            "comparison.md.j2", comparison=comparison, names=names, comparison_table=table(comparison)
        )
        write_atomic(folder / "comparison.md", text.encode())
        write_side_file(folder / CERTIFICATE_FILE, certificate(comparison))
    except OSError as error:
        # The verdict itself needs no file, and a finished run is not undone by a full disk.
        logger.warning("plots and certificate could not be written (%s)", error)


def report_lines(comparison: Comparison) -> list[str]:
    """Table, remarks, first difference, and the verdict as the last line."""
    first = [f"first difference: {comparison.first_difference}"] if comparison.first_difference else []
    return [*table(comparison).splitlines(), *comparison.remarks, *first, comparison.verdict]


def conclude(output_dir: Path, run: RunRecord) -> int:
    """After phase 2: compare it with phase 1, if that is next to it.

    Returns:
        1 when the runs differ although bitwise equality was guaranteed, otherwise 0.
    """
    # Imported here: only training calls this, and `verify` needs no torch.
    from seqtrack.runtime.environment import BITWISE

    folders = (output_dir / "phase_1", output_dir / "phase_2")
    if run.phase != 2 or not folders[0].is_dir():
        return 0
    try:
        comparison = compare_runs(*folders)
    except UserError as error:
        logger.info("not compared with phase 1: %s", error)
        return 0
    write_comparison(comparison, output_dir / COMPARISON)
    for line in report_lines(comparison):
        logger.info("%s", line)
    if comparison.verdict == IDENTICAL or run.starts[-1].guarantee != BITWISE:
        return 0
    first = _read(folders[0] / RUN_FILE, RunRecord)
    if first is not None and first.config_digest != run.config_digest:
        logger.info("phase 1 has another configuration (%d epochs): equality was not guaranteed", first.epochs)
        return 0
    return 1
