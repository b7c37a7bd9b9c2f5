"""The uploader's one file, `.uploads/status.json`: how it is, and what the target was last seen to hold.

It is a memory, not the truth: the target is asked before anything is uploaded and before "all verified" is reported, so
a lost or damaged file costs a reading of the files and no second upload.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from seqtrack.run_dir import STATUS_FILE, UPLOADS
from seqtrack.uploads.settings import UploadSettings
from seqtrack.uploads.target import Fault, Stamp

HEARTBEAT_S = 60.0  # a status older than this has no living writer


class VerifiedFile(BaseModel):
    """A file that the target was seen to hold with these digests; `stamp` is the local file's that they belong to."""

    model_config = ConfigDict(extra="forbid")

    stamp: Stamp
    sha256: str
    git_sha1: str | None = None
    commit: str | None = None


class UploadState(BaseModel):
    """The file. Times are wall-clock seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["seqtrack-uploads/2"] = "seqtrack-uploads/2"
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


def write_state(folder: Path, state: UploadState) -> None:
    """Replace the file. Not flushed: what a power failure takes is asked of the target again.

    Raises:
        OSError: no space, no permission.
    """
    temporary = folder / f".{STATUS_FILE}.tmp"
    temporary.write_text(state.model_dump_json(indent=1) + "\n")
    temporary.replace(folder / STATUS_FILE)


def read_state(output_dir: Path) -> UploadState | None:
    """The state of the uploader of this output folder; None if there is none, or none that can be used."""
    try:
        return UploadState.model_validate_json((output_dir / UPLOADS / STATUS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def is_verified(output_dir: Path, relative_path: str, sha256: str) -> bool:
    """Whether the target was seen to hold this file with these bytes. False whenever that is not certain.

    For retention in the trainer: reads only, never raises for a missing or damaged file.
    """
    state = read_state(output_dir)
    found = state.files.get(relative_path) if state is not None else None
    return found is not None and found.sha256 == sha256


def health_problems(state: UploadState | None, settings: UploadSettings, now: float) -> list[str]:
    """Why the uploader is unhealthy, in sentences; empty if it is healthy, or ended with everything verified.

    Args:
        now: wall-clock seconds.
    """
    if state is None:
        return ["there is no status file: the uploader has not started"]
    if state.state == "done":
        return []
    found: list[str] = []
    age = abs(now - state.time)
    if age > HEARTBEAT_S:
        found.append(f"the last heartbeat is {age:.0f} s old (limit {HEARTBEAT_S:.0f} s)")
    if state.oldest_age_s > settings.lag_limit_s:
        found.append(f"a file has waited for {state.oldest_age_s:.0f} s (limit {settings.lag_limit_s:.0f} s)")
    if state.fault is not None and state.fault.action == "person":
        found.append(state.fault.line)
    if state.problems:
        name, line = next(iter(state.problems.items()))
        found.append(f"{len(state.problems)} files cannot be uploaded, such as {name}: {line}")
    return found
