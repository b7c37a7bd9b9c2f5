"""`seqtrack reproduce`: train a published run again and find where this machine's run leaves it."""

import argparse
import logging
import os
import sys

from seqtrack.commands.audit import evidence_of
from seqtrack.config.environment import read_environment
from seqtrack.errors import STOPPED_EXIT_CODE


def run(args: argparse.Namespace) -> int:
    """Print the first difference and, in the last line, identical, differs or undecided; exit 0, 1 or 3."""
    from seqtrack.proof.audit import code_differences, open_replay, segment_of  # torch

    environment = read_environment(os.environ)
    evidence = evidence_of(args.run, environment)
    last = min(evidence.last_epoch, evidence.first_epoch + (args.epochs or evidence.last_epoch) - 1)
    logging.getLogger("seqtrack").setLevel(logging.WARNING)  # what the trainer logs would look like a run
    with open_replay(evidence, environment.data_dir, environment.device) as (replay, differences):
        for text in (*code_differences(evidence), *differences):
            print(f"differs from the published run: {text}", file=sys.stderr)
        result = replay.run(segment_of(evidence, last, from_start=True))
    if result.stopped:
        return STOPPED_EXIT_CODE
    print(f"epochs {evidence.first_epoch} to {last}: {result.steps} steps, {result.records} records compared")
    if (found := result.mismatch) is None:
        print("identical")
        return 0
    print(
        f"leaves the published run at epoch {found.epoch}, step {found.step}: {found.quantity} is {found.recorded} "
        f"there, {found.recomputed} here; largest relative difference {result.largest_difference:.1e}"
    )
    print("undecided" if differences else "differs")
    return 3 if differences else 1
