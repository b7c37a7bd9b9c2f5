"""Whose files a target holds: each phase's folder there has a marker with the identity of its run.

The marker goes with the first commit. A run that finds another's is refused before anything is overwritten; one that
continues a downloaded checkpoint keeps the identity that was downloaded with it.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.config.loader import load_config
from seqtrack.errors import UserError
from seqtrack.run_dir import CHECKPOINTS, CONFIG_FILE, FETCHED
from seqtrack.uploads.target import Staged, Target, missing, stage

MARKER = "identity.json"


class Identity(BaseModel):
    """`run_id` decides; the digest is of the first configuration, which may be extended."""

    run_id: str = ""
    config_digest: str = ""
    seed: int | None = None


def _read(path: Path) -> Identity:
    try:
        return Identity.model_validate_json(path.read_bytes())
    except ValueError:  # damaged: nobody's
        return Identity()


def _identity_of(folder: Path) -> Identity | None:
    """Of the run in a phase's folder; None before it began."""
    try:
        if (run := read_run(folder)) is None:
            return None
        seed = load_config(str(folder / CONFIG_FILE)).TRAIN.SEED
    except UserError:
        return None
    for checkpoints in (folder / CHECKPOINTS, folder.parent / FETCHED / CHECKPOINTS):
        fetched = checkpoints / fetched_name(f"{folder.name}/{MARKER}")
        if run.resume_epoch is not None and fetched.is_file():
            return _read(fetched)
    run_id = hashlib.sha256(f"{run.started} {run.data_digest} {seed}".encode()).hexdigest()[:32]
    return Identity(run_id=run_id, config_digest=run.config_digest, seed=seed)


def fetched_name(marker: str) -> str:
    """Name of a downloaded marker, next to the checkpoint that it came with."""
    return "." + marker.replace("/", "-")


def write_markers(root: Path, place: Path) -> tuple[Staged, ...]:
    """The markers of all phases, hashed; their files go to the folder `place`."""
    found = []
    for folder in sorted(root.glob("phase_*")):
        if (identity := _identity_of(folder)) is not None:
            file = place / folder.name
            file.write_text(identity.model_dump_json(indent=1) + "\n")
            found.append(stage(f"{folder.name}/{MARKER}", file))
    return tuple(found)


def markers_to_put(target: Target, markers: Sequence[Staged]) -> list[Staged]:
    """The markers that the target does not have yet.

    Raises:
        UserError: it has another run's.
    """
    held = target.look([marker.path for marker in markers]) if markers else {}
    for marker in missing(markers, held):
        if marker.path in held:
            with tempfile.TemporaryDirectory() as folder:
                there = dict(_read(target.fetch(marker.path, None, Path(folder))))
            here = dict(_read(Path(marker.source)))
            if here["run_id"] != there["run_id"]:
                differs = "; ".join(f"{name} {here[name]} here, {there[name]} there" for name in here)
                text = f"{marker.path} on the target is of another run ({differs}): nothing was overwritten. Choose "
                advice = "another HF_REPO or HF_PREFIX, or continue that run by RESUME_EPOCH=latest in a new OUTPUT_DIR"
                raise UserError(text + advice, code="upload.other_run")
    return [marker for marker in markers if marker.path not in held]
