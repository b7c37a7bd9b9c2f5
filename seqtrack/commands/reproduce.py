"""`seqtrack reproduce`: train a published run again and find where this machine's run leaves it."""

import argparse
import os

from seqtrack.commands.audit import IS_MAIN, evidence_of, in_processes, say
from seqtrack.config.environment import read_environment
from seqtrack.errors import STOPPED_EXIT_CODE


def run(args: argparse.Namespace) -> int:
    """Print the first difference and, in the last line, identical, differs or undecided; exit 0, 1 or 3."""
    from seqtrack.proof.audit import code_differences, open_replay, segment_of  # torch

    environment = read_environment(os.environ)
    evidence = evidence_of(args.run, environment)
    last = min(evidence.last_epoch, evidence.first_epoch + (args.epochs or evidence.last_epoch) - 1)

    def recompute() -> int:
        with open_replay(evidence, environment.data_dir, environment.device) as (replay, differences):
            for text in (*code_differences(evidence), *differences):
                say(f"differs from the published run: {text}")
            result = replay.run(segment_of(evidence, last, from_start=True))
        if result.stopped or not IS_MAIN:
            return STOPPED_EXIT_CODE if result.stopped else 0
        print(f"epochs {evidence.first_epoch} to {last}: {result.steps} steps, {result.records} records compared")
        if (found := result.mismatch) is not None:
            print(
                f"leaves the published run at epoch {found.epoch}, step {found.step}: {found.quantity} is "
                f"{found.recorded} there, {found.recomputed} here; largest relative difference "
                f"{result.largest_difference:.1e}"
            )
        verdict = "identical" if found is None else "undecided" if differences else "differs"
        print(verdict)
        return {"identical": 0, "differs": 1, "undecided": 3}[verdict]

    words = ["--epochs", str(args.epochs)] if args.epochs else []
    return in_processes(evidence, ["reproduce", args.run, *words], recompute)
