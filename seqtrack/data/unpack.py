"""Unpacking one class's zip: only sequences, only whole, and only inside the folder.

Knows the forms in which LaSOT's zips come and the tricks a hostile one could try. It must not know where the zip came
from. Every member's name is judged before the first byte is written.
"""

import logging
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from seqtrack.annotation_files import attempt
from seqtrack.data.annotations import read_annotation
from seqtrack.data.frames import is_hidden
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

# JPEG does not compress, so a real zip holds about what it weighs; text is the rest.
_LARGEST_GROWTH = 4
_ALLOWANCE_BYTES = 64 * 1024 * 1024
_LARGEST_MEMBER_BYTES = 256 * 1024 * 1024
_MOST_MEMBERS = 1_000_000
_COPY_BYTES = 1024 * 1024
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    sequence: str
    inside: PurePosixPath


def unpack_class(archive: Path, class_name: str, root: Path, *, wanted: Collection[str], strict: bool) -> list[str]:
    """Unpack a class's sequences into `root/<class>/<class>-<n>/`; each appears whole or not at all.

    Args:
        archive: the zip; sequences are at its top or in a folder of the class.
        wanted: names of sequences that are not there yet.
        strict: refuse a zip that lacks one of them, instead of saying so in the log.

    Returns:
        names of the sequences that were unpacked.

    Raises:
        UserError: the zip is damaged, holds a name that leaves the folder, would grow beyond reason, or lacks a wanted
            sequence; or the disk is full; or a sequence in it is not whole, in which case the others are in place.
    """
    target = root / class_name
    temporary = root / f".unpack-{class_name}-{os.getpid()}"
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _judge(opened, archive, class_name)
            present = {member.sequence for member in members}
            if lacking := sorted(set(wanted) - present):
                text = f"{archive.name} does not hold {', '.join(lacking)}; it holds {len(present)} sequences"
                if strict:
                    raise UserError(text)
                _log.warning("%s", text)
            names = sorted(present.intersection(wanted))
            chosen = [member for member in members if member.sequence in names]
            require_space(root, sum(member.info.file_size for member in chosen), f"unpack {archive.name}")
            for member in chosen:
                _extract(opened, member, temporary)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{archive}: damaged zip ({error}); delete it and download it again") from error
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{archive}: cannot be unpacked into {root}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return _publish(temporary, names, target, archive)


def _publish(temporary: Path, names: list[str], target: Path, archive: Path) -> list[str]:
    """Move the sequences that are whole to their place; complain of the others, and keep them out."""
    problems: list[Problem] = []
    moved: list[str] = []
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        found: list[Problem] = []
        annotation = attempt(found, read_annotation, temporary / name)
        if annotation is None:
            for problem in found:
                text = problem.replace(f"{temporary}/", "")
                problems.append(Problem(f"{archive.name}: {text}; {name} was not unpacked", problem.code))
            continue
        if annotation.missing.any():
            _log.warning(
                "%s: %d frame files of %s are missing in the zip", archive.name, annotation.missing.sum(), name
            )
        (temporary / name).rename(target / name)
        moved.append(name)
    shutil.rmtree(temporary, ignore_errors=True)
    if problems:
        raise UserError(problems)
    return moved


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse before work begins that cannot end.

    Raises:
        UserError: the disk has not that much free.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError(f"not enough room in {folder} to {what}: needs {_gb(needed_bytes)}, free are {_gb(free)}")


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def _judge(opened: zipfile.ZipFile, archive: Path, class_name: str) -> list[_Member]:
    """The members that belong to sequences, after every member was found harmless."""
    infos = opened.infolist()
    problems: list[str] = []
    members: list[_Member] = []
    seen: set[str] = set()
    ignored = 0
    sequence_name = re.compile(re.escape(class_name) + "-[0-9]{1,4}")
    for info in infos[:_MOST_MEMBERS]:
        reason = _refusal(info, seen)
        if reason is not None:
            problems.append(f"{archive.name}: member {info.filename[:120]!a} {reason}; nothing was unpacked")
            continue
        seen.add(info.filename)
        parts = PurePosixPath(info.filename).parts
        place = next((i for i, part in enumerate(parts) if sequence_name.fullmatch(part)), None)
        if info.is_dir():
            continue
        if place is None or place + 1 >= len(parts) or any(map(is_hidden, parts)):
            # Opening compares the name with the member's own header: damage to a name must not hide a frame.
            opened.open(info).close()
            ignored += 1
            continue
        members.append(_Member(info, parts[place], PurePosixPath(*parts[place + 1 :])))
    places = {(member.sequence, member.inside) for member in members}
    if len(places) < len(members):
        problems.append(f"{archive.name}: holds the same file of a sequence twice; nothing was unpacked")
    whole = sum(info.file_size for info in infos)
    if len(infos) > _MOST_MEMBERS or whole > archive.stat().st_size * _LARGEST_GROWTH + _ALLOWANCE_BYTES:
        problems.append(
            f"{archive.name}: {len(infos)} members of {_gb(whole)} in a zip of {_gb(archive.stat().st_size)} are "
            "beyond what frames can be; nothing was unpacked"
        )
    if problems:
        raise UserError(problems[:50])
    if not members:
        raise UserError(f"{archive.name}: holds no sequence named {class_name}-<number>")
    if ignored:
        _log.info("%s: %d members outside of sequences were left in the zip", archive.name, ignored)
    return members


def _refusal(info: zipfile.ZipInfo, seen: set[str]) -> str | None:
    """Why a member must not be unpacked, or None."""
    name = info.orig_filename
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        return "would leave the folder"
    if any(ord(letter) < 32 for letter in name) or any(len(part.encode()) > 255 for part in parts):
        return "has an impossible name"
    if info.filename in seen:
        return "is twice"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.file_size > _LARGEST_MEMBER_BYTES:
        return f"claims {_gb(info.file_size)}"
    return None


def _extract(opened: zipfile.ZipFile, member: _Member, temporary: Path) -> None:
    """Write one member; reading to its end checks its CRC."""
    path = temporary / member.sequence / member.inside
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member.info) as source, path.open("xb") as file:
        shutil.copyfileobj(source, file, _COPY_BYTES)
