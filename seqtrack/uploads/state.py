"""The uploader's one file, `.uploads/status.json`: how it is, and what the target was last seen to hold.

A memory, not the truth: a lost or damaged file costs a reading of the files and no second upload.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from seqtrack.run_dir import STATUS_FILE, UPLOADS
from seqtrack.uploads.target import Digests, Fault, Stamp


class VerifiedFile(Digests):
    """A file that the target was seen to hold with these digests; `stamp` is the local file's that they belong to."""

    sha256: str
    stamp: Stamp
    commit: str | None = None


class UploadState(BaseModel):
    """The file. Times are wall-clock seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["seqtrack-uploads/3"] = "seqtrack-uploads/3"
    state: str = "watching"
    time: float = 0.0
    target: str = ""
    queue: int = 0
    queue_bytes: int = 0
    verified: int = 0
    oldest_age_s: float = 0.0
    last_success: float | None = None
    failures: int = 0
    fault: Fault | None = None
    problems: dict[str, str] = {}
    files: dict[str, VerifiedFile] = {}


def read_state(output_dir: Path) -> UploadState | None:
    """The state of the uploader of this output folder; None if there is none, or none that can be used."""
    try:
        return UploadState.model_validate_json((output_dir / UPLOADS / STATUS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def is_verified(output_dir: Path, relative_path: str, sha256: str) -> bool:
    """Whether the target was seen to hold this file with these bytes, for retention; False if that is not certain."""
    state = read_state(output_dir)
    found = state.files.get(relative_path) if state is not None else None
    return found is not None and found.sha256 == sha256
