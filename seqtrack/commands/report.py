"""`seqtrack report`: write the report of a run from the files of its output folder."""

import argparse
import os

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.reports.rendering import report_page
from seqtrack.reports.report import read_team, write_report


def run(args: argparse.Namespace) -> int:
    """Write report.md (and report.html) into OUTPUT_DIR and print their paths."""
    output_dir = read_environment(os.environ).output_dir
    given = {key: getattr(args, key) for key in ("title", "number", "course", "repository", "hub", "notes")}
    team = read_team(args.team, {**given, "team": args.team_name, "members": args.member})
    try:
        written = write_report(output_dir, team)
        if args.html:
            written.append(output_dir / "report.html")
            page = report_page(written[0].read_text(encoding="utf-8"), output_dir)
            write_atomic(written[-1], page.encode())
    except OSError as error:
        raise UserError(f"{output_dir}: the report cannot be written ({error})", code="file.unwritable") from error
    print(*written, sep="\n")
    return 0
