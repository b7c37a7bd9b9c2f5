"""`seqtrack restore`: recompute the checkpoint of an epoch that a run kept no file of."""

import argparse
import os

from seqtrack.checkpoints.safetensors_io import DamagedFileError
from seqtrack.checkpoints.store import verify_checkpoint
from seqtrack.commands.audit import IS_MAIN, in_processes
from seqtrack.config.environment import read_environment
from seqtrack.errors import STOPPED_EXIT_CODE, Problem, RunError, UserError
from seqtrack.run_dir import CHECKPOINTS


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint, with the digest that the run recorded for it; exit 1 if this machine computes another. An
    existing one is verified."""
    from seqtrack.proof.audit import open_replay, read_evidence, segment_of  # torch

    environment = read_environment(os.environ)
    folder = environment.phase_folder(args.phase)
    evidence = read_evidence(folder)
    if args.epoch not in evidence.manifests:
        known = ", ".join(map(str, sorted(evidence.manifests)))
        raise UserError(f"{folder} recorded no epoch {args.epoch}; it has {known}", "restore.no_such_epoch")
    manifest = evidence.manifests[args.epoch]
    if manifest.path.is_file() and manifest.kind == "epoch":  # a thin one's was left by a kill before the manifest
        try:
            verify_checkpoint(manifest)
        except DamagedFileError as error:
            advice = f"move {manifest.path} aside, and the same command recomputes it"
            raise UserError([*error.problems, Problem(advice, error.code)]) from error
        print(manifest.path)
        return 0

    def recompute() -> int:
        with open_replay(evidence, environment.data_dir, environment.device) as (replay, differences):
            try:
                result = replay.run(segment_of(evidence, args.epoch), keep_in=folder / CHECKPOINTS)
            except OSError as error:
                raise UserError(f"{error.filename}: cannot be written ({error.strerror})", "file.unwritable") from error
        if result.stopped or not IS_MAIN:
            return STOPPED_EXIT_CODE if result.stopped else 0
        if (found := result.mismatch) is not None:
            where = f"epoch {found.epoch}, step {found.step}: {found.quantity} is {found.recorded} in the run"
            reason = "; ".join(differences) or "the run's records were changed"
            text = f"{where}, {found.recomputed} recomputed: {reason}"
            raise RunError(f"epoch {args.epoch} could not be restored. {text}", "restore.differs")
        print(manifest.path)
        return 0

    words = ["restore", "--epoch", str(args.epoch), *(["--phase", str(args.phase)] if args.phase else [])]
    return in_processes(evidence, words, recompute)
