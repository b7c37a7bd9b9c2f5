"""`seqtrack compare`: the evaluations of several runs in one table and one plot."""

import argparse
import os

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.evaluation.several_runs import comparison_table, read_evaluations, write_comparison
from seqtrack.reports.document import report_document
from seqtrack.run_dir import COMPARE


def run(args: argparse.Namespace) -> int:
    """Write compare.md, .csv, .png and, if wanted, .docx, and print the table and their paths."""
    records = read_evaluations(args.runs)
    folder = args.output or read_environment(os.environ).output_dir / COMPARE
    try:
        paths = write_comparison(records, folder)
        if args.docx:
            paths.append(folder / "compare.docx")
            write_atomic(paths[-1], report_document(paths[0].read_text(encoding="utf-8"), folder))
    except OSError as error:
        raise UserError(f"{folder}: the comparison cannot be written there ({error})", "compare.output") from error
    print(comparison_table(records), *paths, sep="\n")
    return 0
