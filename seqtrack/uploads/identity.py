"""Whose files a target holds: each phase's folder there has a marker with the identity of its run.

The marker goes with the first commit. A run that finds another's is refused before anything is overwritten; one that
continues a downloaded checkpoint keeps the identity that was downloaded with it.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.config.loader import load_config
from seqtrack.errors import UserError
from seqtrack.run_dir import CHECKPOINTS, CONFIG_FILE, FETCHED, RUN_FILE
from seqtrack.uploads.target import Staged, Target, stage

MARKER = "identity.json"
FETCHED_MARKER = ".{}-identity.json"  # by phase: a downloaded one, next to the checkpoint that it came with
_RUN_ID = re.compile(r'"run_id": "\w+"')


def markers_of(root: Path) -> dict[str, str]:
    """Text by path of the markers of all runs that have begun. `run_id` decides; the digest is the first start's."""
    found: dict[str, str] = {}
    for folder in root.glob("phase_*"):
        try:
            if (run := read_run(folder)) is None:
                continue
            seed = load_config(str(folder / CONFIG_FILE)).TRAIN.SEED
        except UserError:
            continue
        marker = f"{folder.name}/{MARKER}"
        run_id = hashlib.sha256(f"{run.started} {run.data_digest} {seed}".encode()).hexdigest()[:32]
        values = {"run_id": run_id, "config_digest": run.config_digest, "seed": seed}
        found[marker] = json.dumps(values) + "\n"
        for checkpoints in (root / FETCHED / CHECKPOINTS, folder / CHECKPOINTS):
            fetched = checkpoints / FETCHED_MARKER.format(folder.name)
            if run.resume_epoch is not None and fetched.is_file():
                found[marker] = fetched.read_text(errors="replace")
    return found


def markers_to_put(target: Target, markers: Mapping[str, str], files: Sequence[Staged], place: Path) -> list[Staged]:
    """The markers that the target lacks, as files in `place`; a UserError if a run or phase of `files` is another's."""
    phases = {file.path.split("/")[0] for file in files if file.path.startswith("phase_")}
    texts = {f"{phase}/{MARKER}": "" for phase in phases} | {**markers}
    held, staged = target.look(list(texts)) if texts else {}, []
    for path, text in texts.items():
        file = place / path.replace("/", "-")
        file.write_text(text)
        ours = stage(path, file)
        if path not in held:
            staged += [ours] if text else []
        elif not ours.equals(held[path]):
            with tempfile.TemporaryDirectory() as folder:
                theirs = target.fetch(path, None, Path(folder)).read_text(errors="replace")
            if not _RUN_ID.search(text) or _RUN_ID.findall(text) != _RUN_ID.findall(theirs):
                here = text or f"not known (no valid {RUN_FILE} and {CONFIG_FILE})"
                found = f"{path} is {here} here and of another run there, {theirs:.300}: nothing was overwritten"
                advice = "choose another HF_REPO or HF_PREFIX, or continue that run by RESUME_EPOCH=latest elsewhere"
                raise UserError(f"{found}; {advice}", code="upload.other_run")
    return staged
