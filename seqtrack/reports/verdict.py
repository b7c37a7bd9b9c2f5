"""The verdict in words and files: the table, the certificate, the comparison folder.

Knows a `Comparison` and how to tell it; compares nothing itself. Needs no torch.
"""

import logging
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.files import DamagedFileError, read_json_object, utc_now, write_atomic, write_json
from seqtrack.errors import UserError
from seqtrack.reports.compare import IDENTICAL, Comparison, compare_runs
from seqtrack.reports.plots import plot_comparison

logger = logging.getLogger(__name__)

CERTIFICATE_FORMAT = "seqtrack-certificate/1"


def table(comparison: Comparison) -> str:
    """The comparison epoch by epoch, as Markdown that reads well on a terminal too."""
    names = [folder.name for folder in comparison.folders]
    head = ["epoch", f"loss {names[0]}", f"loss {names[1]}", f"IoU {names[0]}", f"IoU {names[1]}", "sha256", "verdict"]
    rows = []
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
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def certificate(comparison: Comparison) -> dict[str, Any]:
    """The verdict with everything that it rests on, for `certificate.json`."""
    return {
        "format": CERTIFICATE_FORMAT,
        "verdict": comparison.verdict,
        "first_difference": comparison.first_difference,
        "remarks": comparison.remarks,
        "created": utc_now(),
        "runs": [_run_facts(folder) for folder in comparison.folders],
        "epochs": [
            {
                "epoch": row.epoch,
                "same": row.is_same,
                "differences": row.differences,
                "sha256": list(row.sha256),
                "weights_sha256": [manifest.weights_sha256 for manifest in row.manifests],
                "loss": [manifest.loss for manifest in row.manifests],
                "iou": [manifest.iou for manifest in row.manifests],
            }
            for row in comparison.rows
        ],
    }


def _run_facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"folder": folder.name}
    for name, keys in (
        ("run.json", ("config", "config_digest", "data_digest", "resume_epoch", "state", "starts")),
        ("environment.json", ("commit", "lock_sha256", "fingerprint", "versions")),
    ):
        try:
            record = read_json_object(folder / name)
        except (FileNotFoundError, DamagedFileError):
            facts[name] = "not there"
            continue
        facts |= {key: record.get(key) for key in keys}
    return facts


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write plots, `comparison.md` and `certificate.json` into `folder`; where that cannot be written, say so."""
    try:
        _write_comparison(comparison, folder)
    except OSError as error:
        # The verdict itself needs no file, and a finished run is not undone by a full disk.
        logger.warning("plots and certificate could not be written into %s (%s)", folder, error.strerror or error)


def _write_comparison(comparison: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot_comparison(comparison.folders, folder, verdict=comparison.verdict)
    names = [place.name for place in comparison.folders]
    lines = [
        f"# {names[0]} and {names[1]}",
        "",
        "Epochs that both hold, compared by the bytes of their checkpoints (weights, optimizer, scheduler, random "
        "states, history) and by every number of their logs.",
        "",
        table(comparison),
        "",
        *(f"- {remark}" for remark in comparison.remarks),
        "",
        "![training](training_comparison.png)",
        "",
        f"First difference: {comparison.first_difference or 'none'}",
        "",
        f"Verdict: **{comparison.verdict}**",
        "",
    ]
    write_atomic(folder / "comparison.md", "\n".join(lines).encode())
    write_json(folder / "certificate.json", certificate(comparison))


def say(comparison: Comparison) -> None:
    """Log table, remarks and verdict; the verdict is the last word."""
    for line in table(comparison).splitlines():
        logger.info("%s", line)
    for remark in comparison.remarks:
        logger.info("%s", remark)
    if comparison.first_difference:
        logger.info("first difference: %s", comparison.first_difference)
    logger.info("%s", comparison.verdict)


def conclude(output_dir: Path, *, phase: int, promise: str) -> int:
    """After phase 2: compare it with phase 1, if that stands beside it.

    Returns:
        1 when equal bits were promised and the runs differ, otherwise 0.
    """
    # Imported here: only training asks for this, and `verify` needs no torch.
    from seqtrack.engine.fingerprint import BIT_EQUAL

    folders = (output_dir / "phase_1", output_dir / "phase_2")
    if phase != 2 or not folders[0].is_dir():
        return 0
    try:
        comparison = compare_runs(*folders)
    except UserError as error:
        logger.info("not compared with phase 1: %s", error)
        return 0
    write_comparison(comparison, output_dir / "comparison")
    say(comparison)
    return 0 if comparison.verdict == IDENTICAL or promise != BIT_EQUAL else 1
