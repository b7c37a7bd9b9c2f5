"""`seqtrack report`: write the report of a run from the files of its output folder."""

import argparse
import os

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.reports.document import report_document
from seqtrack.reports.handin import write_hand_in
from seqtrack.reports.rendering import report_page
from seqtrack.reports.report import read_team, write_report
from seqtrack.run_dir import HAND_IN_FILE


def run(args: argparse.Namespace) -> int:
    """Write the report into OUTPUT_DIR in every wanted form, and the zip; print their paths and the zip's contents."""
    output_dir = read_environment(os.environ).output_dir
    given = {key: getattr(args, key) for key in ("title", "number", "course", "repository", "hub", "notes")}
    team = read_team(args.team, {**given, "team": args.team_name, "members": args.member})
    try:
        written = write_report(output_dir, team)
        text = written[0].read_text(encoding="utf-8")
        if args.html or args.zip:
            written.append(output_dir / "report.html")
            write_atomic(written[-1], report_page(text, output_dir).encode())
        if args.docx or args.zip:
            written.append(output_dir / "report.docx")
            write_atomic(written[-1], report_document(text, output_dir, author=", ".join(team.members)))
        contents = []
        if args.zip:
            written.append(output_dir / HAND_IN_FILE)
            contents = write_hand_in(written[-1], {"": output_dir}, team)
    except OSError as error:
        raise UserError(f"{output_dir}: the report cannot be written ({error})", code="file.unwritable") from error
    print(*written, *(f"  {name}" for name in contents), sep="\n")
    return 0
