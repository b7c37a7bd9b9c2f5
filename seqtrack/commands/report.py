"""`seqtrack report`: write the report of a run from the files of its output folder."""

import argparse
import os
from pathlib import Path

from seqtrack.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--team", type=Path, metavar="TEAM.yaml", help="title, team, number, course, members, ...")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--name", dest="team_name", metavar="TEAM", help="name of the team")
    parser.add_argument("--number", help="number of the team")
    parser.add_argument("--course", help="course the report is for")
    parser.add_argument("--member", action="append", default=[], metavar="PERSON", help="may be repeated")
    parser.add_argument("--repository", help="address of the code")
    parser.add_argument("--hub", help="address of the checkpoints")
    parser.add_argument("--notes", help="a further line")
    parser.add_argument("--html", action="store_true", help="also write a self-contained report.html")


def run(args: argparse.Namespace) -> int:
    """Write report.md (and report.html) into OUTPUT_DIR and print their paths."""
    # Imported here: --help must be fast.
    from seqtrack.checkpoints.safetensors_io import write_atomic
    from seqtrack.config.environment import read_environment
    from seqtrack.reports.page import report_page
    from seqtrack.reports.report import write_report
    from seqtrack.reports.team import read_team

    output_dir = read_environment(os.environ).output_dir
    flags = {key: getattr(args, key) for key in ("title", "number", "course", "repository", "hub", "notes")}
    team = read_team(args.team, flags={**flags, "team": args.team_name}, members=args.member)
    try:
        written = write_report(output_dir, team)
        if args.html:
            page = report_page(written[0].read_text(encoding="utf-8"), output_dir)
            target = output_dir / "report.html"
            write_atomic(target, page.encode())
            written.append(target)
    except OSError as error:
        raise UserError(f"{output_dir}: the report cannot be written ({error})", code="file.unwritable") from error
    for path in written:
        print(path)
    return 0
