"""`seqtrack audit`: recompute parts of a run, chosen by a nonce, and compare them with what it recorded."""

import argparse
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.checkpoints.safetensors_io import write_json
from seqtrack.checkpoints.side_files import AuditRecord, Manifest
from seqtrack.checkpoints.store import manifest_of
from seqtrack.commands.train import one_of_several
from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import STOPPED_EXIT_CODE, Problem, UserError
from seqtrack.parsing import ParseError, parse_int
from seqtrack.reports.consistency import inconsistencies
from seqtrack.run_dir import AUDIT_FILE, CHECKPOINTS, FETCHED, epoch_name, manifest_path, phase_name
from seqtrack.runtime.launcher import launch
from seqtrack.uploads.fetch import fetch_files, fetch_run

if TYPE_CHECKING:
    from seqtrack.proof.audit import RunEvidence
    from seqtrack.proof.replay import Replayed

IS_MAIN = os.environ.get("RANK", "0") == "0"
EXIT_CODES = {"confirmed": 0, "refuted": 1, "undecided": 3}


def run(args: argparse.Namespace) -> int:
    """Print what was recomputed and, in the last line, confirmed, refuted or undecided; exit 0, 1 or 3."""
    from seqtrack.proof.audit import audit, choose_segments, estimate_s  # torch

    nonce = args.nonce or secrets.token_hex(8)
    try:
        nonce.encode()
    except UnicodeEncodeError as error:  # of bytes that are no text Python makes surrogates
        raise UserError(f"--nonce: found {nonce!r}, expected text in UTF-8", "audit.nonce") from error
    environment = read_environment(os.environ)
    evidence = evidence_of(args.run, environment)
    segments = choose_segments(
        evidence,
        nonce=nonce,
        segments=args.segments,
        steps=args.steps,
        epochs=_epochs(args.epochs, evidence.first_epoch, evidence.last_epoch),
    )
    expected = timedelta(seconds=round(estimate_s(evidence, segments)))
    say(f"{evidence.folder}: epochs {evidence.first_epoch} to {evidence.last_epoch}; nonce {nonce}")
    say(f"parts to recompute: {len(segments)}, {expected} of the training")

    def recompute() -> int:
        record = audit(
            evidence,
            segments,
            data_dir=environment.data_dir,
            device=environment.device,
            nonce=nonce,
            on_segment=lambda one: say(_outcome(one)),
        )
        if record is None:
            return STOPPED_EXIT_CODE if IS_MAIN else 0
        target = args.output or evidence.folder / AUDIT_FILE
        try:
            write_json(target, record.model_dump())
        except OSError as error:
            say(f"{target} could not be written: {error.strerror}")
        print(record.model_dump_json() if args.json else "\n".join(report_lines(record)))
        return EXIT_CODES[record.verdict]

    options = {"--segments": args.segments, "--steps": args.steps, "--epochs": args.epochs, "--output": args.output}
    words = [f"{name}={value}" for name, value in options.items() if value is not None]
    return in_processes(evidence, ["audit", args.run, f"--nonce={nonce}", *words, *["--json"] * args.json], recompute)


def _outcome(one: "Replayed") -> str:
    states = f", state after epoch {', '.join(map(str, one.states))}" if one.states else ""
    found = "equal" if one.records or one.states else "nothing recorded to compare, take more --steps"
    found = f"{one.mismatch.quantity} differs" if one.mismatch else found
    return f"epoch {one.segment.epoch}: {one.steps} steps, {one.records} records{states}: {found}"


def in_processes(evidence: "RunEvidence", words: list[str], recompute: Callable[[], int]) -> int:
    """Do `recompute` in as many processes as the run had, here or in processes with these command line words; with
    TRAIN.SHARDS in NPROC processes."""
    logging.getLogger("seqtrack").setLevel(logging.WARNING)  # what the trainer logs would look like a run
    if "RANK" in os.environ:
        one_of_several(recompute)
    environment = read_environment(os.environ)
    processes = evidence.manifests[evidence.last_epoch].fingerprint.get("world_size", environment.nproc)
    if not isinstance(processes, int) or processes == 1:
        return recompute()
    return launch([sys.executable, "-m", "seqtrack", *words], processes, environment)


def evidence_of(run: str, environment: Environment) -> "RunEvidence":
    """The evidence of a run named by its folder, by the folder's name in the output folder, or by its place on the Hub.

    Raises:
        UserError: there is none, or its files contradict each other.
    """
    from seqtrack.proof.audit import read_evidence  # torch

    fetch, folder = None, Path(run)
    if published := re.fullmatch(r"hf://((?:datasets/)?[^/@]+/[^/@]+)(?:@([^/]+))?(?:/phase_([12]))?", run):
        repo, revision, phase = published[1], published[2], int(published[3] or 1)
        there = environment.model_copy(update={"hf_repo": repo, "hf_prefix": None, "upload_target": None})
        place = environment.output_dir / FETCHED / run.removeprefix("hf://").replace("/", "_")
        folder = fetch_run(there, phase, place, revision=revision)

        def fetch(epoch: int) -> Manifest | None:
            for number in dict.fromkeys((phase, 1)):  # a second phase may have resumed from the first
                path = f"{phase_name(number)}/{CHECKPOINTS}/{epoch_name(epoch)}"
                try:
                    paths = [path, str(manifest_path(Path(path)))]
                    return manifest_of(fetch_files(there, paths, place, revision=revision)[0])
                except UserError as error:
                    if error.code != "upload.no_such_file":
                        raise
            return None

    elif run.startswith("hf://"):
        raise UserError(f"{run}: expected hf://owner/name[@revision][/phase_1]", "audit.address")
    elif not folder.is_dir() and "/" not in run:
        folder = environment.output_dir / run
    evidence = read_evidence(folder, fetch)
    if problems := inconsistencies(folder):
        raise UserError([Problem(text, "audit.inconsistent") for text in problems])
    return evidence


def report_lines(record: AuditRecord) -> list[str]:
    """What was covered, what was found, and the verdict as the last line."""
    from seqtrack.proof.audit import missed_chance  # torch

    share = 100 * record.steps / record.steps_of_run
    lines = [f"recomputed {record.steps} of {record.steps_of_run} steps ({share:.1f} %) in {record.seconds:.0f} s"]
    whole = sorted({epoch for one in record.segments for epoch in one.states})
    drawn = sum(not one.states for one in record.segments)
    others = record.last_epoch - record.first_epoch + 1 - len(whole)
    of_all = f"of {record.first_epoch} to {record.last_epoch}"
    lines.append(f"epochs recomputed whole: {', '.join(map(str, whole)) or 'none'} {of_all}")
    if others:
        chances = [
            f"{missed_chance(others, min(drawn, others), forged):.0%} for {forged}"
            for forged in (1, 2, 5)
            if forged <= others
        ]
        lines.append(
            f"beginnings of {drawn} of the {others} other epochs; the chance to miss forged ones among them: "
            + ", ".join(chances)
        )
    for reason in record.machine_differences:
        lines.append(f"another machine than the run's: {reason}")
    for one in record.segments:
        if one.difference is not None:
            found = one.difference
            lines.append(
                f"epoch {found.epoch}, step {found.step}: {found.quantity} is {found.recorded} in the run, "
                f"{found.recomputed} recomputed; largest relative difference {one.largest_difference:.1e}"
            )
    return [*lines, record.verdict]


def _epochs(text: str | None, first: int, last: int) -> list[int] | None:
    if text is None:
        return None
    if text == "all":
        return list(range(first, last + 1))
    try:
        return sorted({parse_int(part) for part in text.split(",")})
    except ParseError:
        raise UserError(f"--epochs: found {text!r}, expected all or numbers such as 3,7", "audit.epochs") from None


def say(text: str) -> None:
    """Report progress, from one process of several."""
    if IS_MAIN:
        print(text, file=sys.stderr, flush=True)
