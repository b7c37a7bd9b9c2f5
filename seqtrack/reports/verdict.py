"""The verdict in words and files: the table, the certificate, the comparison folder.

Knows a `Comparison` and how to tell it; compares nothing itself. Needs no torch.
"""

import contextlib
import logging
from pathlib import Path

from seqtrack.checkpoints.resume_point import RUN_FILE
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
from seqtrack.markdown import bold, escape
from seqtrack.reports.compare import IDENTICAL, Comparison, compare_runs
from seqtrack.reports.plots import plot_comparison

logger = logging.getLogger(__name__)


def table(comparison: Comparison) -> str:
    """The comparison epoch by epoch, as Markdown that reads well on a terminal too."""
    names = [folder.name for folder in comparison.folders]
    head = ["epoch", f"loss {names[0]}", f"loss {names[1]}", f"IoU {names[0]}", f"IoU {names[1]}", "sha256", "verdict"]
    rows: list[list[str]] = []
    for row in comparison.rows:
        first, second = row.manifests
        digests = (
            row.sha256[0][:12] if row.sha256[0] == row.sha256[1] else f"{row.sha256[0][:12]} / {row.sha256[1][:12]}"
        )
        rows.append(
            [
                str(row.epoch),
                _number(first.loss),
                _number(second.loss),
                _number(first.iou),
                _number(second.iou),
                digests,
                "same" if row.is_same else ", ".join(row.differences),
            ]
        )
    cells: list[list[str]] = [[escape(cell) for cell in line] for line in [head, *rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def certificate(comparison: Comparison) -> Certificate:
    """The verdict with everything that it rests on, for `certificate.json`."""
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
    """What run.json and environment.json tell; nothing of one that is missing, or damaged, which is a difference."""
    run, machine = _read(folder / RUN_FILE, RunRecord), _read(folder / "environment.json", EnvironmentRecord)
    told = {**(run.model_dump() if run else {}), **(machine.model_dump() if machine else {})}
    return CertifiedRun.model_validate(
        {"folder": folder.name, **{key: value for key, value in told.items() if key in CertifiedRun.model_fields}}
    )


def _read(path: Path, kind: type[M]) -> M | None:
    with contextlib.suppress(UserError):
        return read_side_file(path, kind)
    return None


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write plots, `comparison.md` and `certificate.json` into `folder`; where that cannot be written, say so."""
    try:
        _write_comparison(comparison, folder)
    except OSError as error:
        # The verdict itself needs no file, and a finished run is not undone by a full disk.
        logger.warning("plots and certificate could not be written (%s)", error)


def _write_comparison(comparison: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot_comparison(comparison.folders, folder, verdict=comparison.verdict)
    names = [place.name for place in comparison.folders]
    lines = [
        f"# {escape(names[0])} and {escape(names[1])}",
        "",
        "Epochs that both hold, compared by the bytes of their checkpoints (weights, optimizer, scheduler, random "
        "states, history) and by every number of their logs.",
        "",
        table(comparison),
        "",
        *(f"- {escape(remark)}" for remark in comparison.remarks),
        "",
        "![training](training_comparison.png)",
        "",
        f"First difference: {escape(comparison.first_difference or 'none')}",
        "",
        f"Verdict: {bold(comparison.verdict)}",
        "",
    ]
    write_atomic(folder / "comparison.md", "\n".join(lines).encode())
    write_side_file(folder / "certificate.json", certificate(comparison))


def say(comparison: Comparison) -> None:
    """Log table, remarks and verdict; the verdict is the last word."""
    for line in table(comparison).splitlines():
        logger.info("%s", line)
    for remark in comparison.remarks:
        logger.info("%s", remark)
    if comparison.first_difference:
        logger.info("first difference: %s", comparison.first_difference)
    logger.info("%s", comparison.verdict)


def conclude(output_dir: Path, run: RunRecord) -> int:
    """After phase 2: compare it with phase 1, if that is next to it.

    Returns:
        1 when equal bits were promised and the runs differ, otherwise 0.
    """
    # Imported here: only training asks for this, and `verify` needs no torch.
    from seqtrack.runtime.environment import BITWISE

    folders = (output_dir / "phase_1", output_dir / "phase_2")
    if run.phase != 2 or not folders[0].is_dir():
        return 0
    try:
        comparison = compare_runs(*folders)
    except UserError as error:
        logger.info("not compared with phase 1: %s", error)
        return 0
    write_comparison(comparison, output_dir / "comparison")
    say(comparison)
    if comparison.verdict == IDENTICAL or run.starts[-1].guarantee != BITWISE:
        return 0
    first = _read(folders[0] / RUN_FILE, RunRecord)
    if first is not None and first.config_digest != run.config_digest:
        logger.info("phase 1 has another configuration (%d epochs): no promise was made for the whole", first.epochs)
        return 0
    return 1
