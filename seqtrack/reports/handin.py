"""The zip to hand in: report, team, references to the code, tables, plots, logs and manifests, without checkpoints."""

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_zip
from seqtrack.reports.report import Team
from seqtrack.reports.requirements import REQUIREMENTS, find
from seqtrack.run_dir import HAND_IN_FILES

CONTENTS_FILE = "CONTENTS.txt"


def write_hand_in(path: Path, folders: Mapping[str, Path], team: Team) -> list[str]:
    """Write the zip; it is complete or absent.

    Args:
        folders: output folders by their name in the zip, "" for its root.

    Returns:
        the names in it, the list of contents (bytes, SHA-256, name) first.
    """
    contents = {"team.json": team.model_dump_json(indent=2).encode() + b"\n", "code_references.csv": _references()}
    for name, folder in folders.items():
        root = folder.resolve()
        for found in sorted({one for pattern in HAND_IN_FILES for one in folder.glob(pattern) if one.is_file()}):
            if not found.resolve().is_relative_to(root):  # a link to a file of somebody else
                continue
            contents[f"{name}/{found.relative_to(folder).as_posix()}".lstrip("/")] = found.read_bytes()
    lines = [f"{len(data):>10}  {hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()]
    contents = {CONTENTS_FILE: "".join(lines).encode(), **contents}
    write_zip(path, contents)
    return [*contents]


def _references() -> bytes:
    """CSV of the functions behind each requirement, with file and line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["requirement", "function", "file", "line"])
    writer.writerows([requirement, *find(name)] for requirement, names in REQUIREMENTS.items() for name in names)
    return stream.getvalue().encode()
