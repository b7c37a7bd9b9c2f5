"""`seqtrack verify`: compare two runs, or check the hash chain of one."""

import argparse
import contextlib
import os
from pathlib import Path

from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.reports.compare import check_run, compare_runs
from seqtrack.reports.verdict import report_lines, write_comparison
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON, PHASES


def run(args: argparse.Namespace) -> int:
    """Print the table and, in the last line, `identical` or `differs`, of one run `consistent` or `contradictory`."""
    output_dir = read_environment(os.environ).output_dir
    # Each as given, or one of that name in the output folder.
    paths = [Path(name) for name in args.runs or PHASES]
    folders = [path if path.is_dir() or "/" in str(path) else output_dir / path for path in paths]
    if len(folders) == 1:
        problems = check_run(folders[0])
        print(*problems, "contradictory" if problems else "consistent", sep="\n")
        return 1 if problems else 0
    if len(folders) != 2:
        raise UserError(f"verify compares two runs; {len(folders)} were given", code="verify.not_two_runs")

    parent = folders[0].resolve().parent
    # Only the two phases of one output folder have a certificate there; any other pair must not replace it.
    are_phases = [folder.resolve() for folder in folders] == [parent / name for name in PHASES]
    target = args.output or (parent / COMPARISON if are_phases else None)
    if target is not None:  # an old verdict must not outlive a comparison that cannot be made
        with contextlib.suppress(OSError):
            (target / CERTIFICATE_FILE).unlink()
    certificate = compare_runs(folders[0], folders[1])
    if target is not None:
        write_comparison(certificate, folders, target)
    print("\n".join(report_lines(certificate)))
    return int(certificate.verdict == "differs")
