"""What the sidecar tells the world: a small JSON file, replaced whole, and what a healthcheck makes of it.

Written without fsync: a status lost in a power cut is worth nothing, and a sync every few seconds would press on the
disk that training writes to.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from seqtrack.parsing import ParseError, parse_json
from seqtrack.uploads.journal import STATE_FOLDER
from seqtrack.uploads.settings import UploadSettings

STATUS_NAME = "status.json"
_ROOM = 128 * 1024  # what the journal needs at least
_ENDED = "done"


def state_folder(output_dir: Path) -> Path:
    """The sidecar's own folder, made if need be: in the output folder, or, if nothing can be written there, elsewhere.

    Raises:
        OSError: neither can be written.
    """
    place = output_dir / STATE_FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(_ROOM))
            probe.flush()
        return place
    except OSError:
        other = _other_folder(output_dir)
        other.mkdir(parents=True, exist_ok=True, mode=0o700)
        return other


def _other_folder(output_dir: Path) -> Path:
    name = hashlib.sha256(str(output_dir.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"seqtrack-uploads-{os.getuid()}-{name}"


def write_status(folder: Path, values: dict[str, Any]) -> None:
    """Replace the status file."""
    temporary = folder / f".{STATUS_NAME}.tmp"
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(folder / STATUS_NAME)


def read_status(output_dir: Path) -> dict[str, Any] | None:
    """The newest status of the sidecar of this output folder, or None if there is none."""
    found: list[dict[str, Any]] = []
    for folder in (output_dir / STATE_FOLDER, _other_folder(output_dir)):
        try:
            values = parse_json((folder / STATUS_NAME).read_bytes())
        except (OSError, ParseError):
            continue
        if isinstance(values, dict) and type(values.get("time")) in (int, float):
            found.append(values)
    return max(found, key=lambda values: float(values["time"]), default=None)


def health_problems(status: dict[str, Any] | None, settings: UploadSettings, now: float) -> list[str]:
    """Why the sidecar is not well, in sentences; empty if it is, or if it has ended well.

    Args:
        now: wall-clock seconds.
    """
    if status is None:
        return ["there is no status file: the sidecar has not started"]
    if status.get("state") == _ENDED:
        return []
    found: list[str] = []
    age = abs(now - float(status["time"]))
    if age > settings.heartbeat_s:
        found.append(f"the last sign of life is {age:.0f} s old (limit {settings.heartbeat_s:.0f} s)")
    if float(status.get("oldest_age_s", 0.0)) > settings.lag_limit_s:
        found.append(f"a file has waited for {status['oldest_age_s']:.0f} s (limit {settings.lag_limit_s:.0f} s)")
    fault = status.get("fault")
    if fault is not None and fault.get("permanent"):
        found.append(f"{fault['kind']}: {fault['line']}")
    if status.get("problems"):
        name, line = next(iter(status["problems"].items()))
        found.append(f"{len(status['problems'])} files cannot be sent, such as {name}: {line}")
    if status.get("local_fault"):
        found.append(str(status["local_fault"]))
    return found
