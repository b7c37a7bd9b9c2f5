"""Fetching classes of LaSOT from the Hub: listed, resumed, verified by digest, then unpacked.

Nothing is unpacked whose digest is not the one that the Hub lists. From a zip come only sequences, only complete ones,
and only into the data folder: every member's name is checked before the first byte is written.
"""

import difflib
import fcntl
import logging
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, RepoFile, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.data.annotations import attempt, class_of
from seqtrack.data.frames import is_hidden
from seqtrack.data.lasot import find_layout, official_split
from seqtrack.data.sequence import read_sequence
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

REPO = "l-lt/LaSOT"
_SPACE_FACTOR = 1.02
_TRIES = 5
_PAUSE_S = 0.5
# JPEG does not compress, so the files of a real zip are about as large as the zip; text is the rest.
_MAX_GROWTH = 4
_ALLOWANCE_BYTES = 64 * 1024 * 1024
_MAX_MEMBER_BYTES = 256 * 1024 * 1024
_MAX_MEMBERS = 1_000_000
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Hub:
    """Where the data set is: endpoint (None for the public Hub), repo, revision, and a token if one is needed."""

    endpoint: str | None = None
    repo: str = REPO
    revision: str = "main"
    token: str | None = None


@dataclass(frozen=True)
class _Zip:
    class_name: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    sequence: str
    inside: PurePosixPath


def download_classes(
    data_dir: Path,
    classes: tuple[str, ...],
    *,
    hub: Hub,
    split: str = "all",
    sequences: tuple[str, ...] = (),
    keep_zip: bool = False,
) -> dict[str, list[str]]:
    """Fetch those sequences of the classes that the data folder lacks.

    Args:
        data_dir: the data set goes to `data_dir/lasot`, or to where its sequences already are.
        split: "train", "test" or "all".
        sequences: only these; empty for all of the split.
        keep_zip: leave each zip next to the classes.

    Returns:
        names of the sequences that were added, by class.

    Raises:
        UserError: an unknown class or sequence, no network, no space, or a zip that is damaged or hostile.
    """
    _check_names(classes, sequences)
    try:
        root = find_layout(data_dir).root
    except UserError:
        root = data_dir if data_dir.name.lower() == "lasot" else data_dir / "lasot"
    missing: dict[str, list[str]] = {}
    for name in classes:
        wanted = [one for one in _sequences_of(name, split) if not sequences or one in sequences]
        missing[name] = [one for one in wanted if not (root / name / one).exists() and not (root / one).exists()]
        if not missing[name]:
            _log.info("%s: all %d sequences exist", name, len(wanted))
    added: dict[str, list[str]] = {name: [] for name in classes}
    try:
        if any(missing.values()):
            root.mkdir(parents=True, exist_ok=True)
            with (root / ".download.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                zips = _list_zips(hub, [name for name in classes if missing[name]])
                # A zip is as large as its contents, and both exist until it is unpacked.
                rest = sum(one.size - _size(_part(root, one)) for one in zips)
                needed = int((max(0, rest) + max(one.size for one in zips)) * _SPACE_FACTOR)
                _require_space(root, needed, f"download and unpack {', '.join(one.class_name for one in zips)}")
                for zip_ in zips:
                    archive = _download(zip_, root, hub)
                    strict = bool(sequences)
                    names = unpack_class(archive, zip_.class_name, root, wanted=missing[zip_.class_name], strict=strict)
                    added[zip_.class_name] = names
                    _log.info("%s: %d sequences unpacked into %s", zip_.class_name, len(names), root / zip_.class_name)
                    if not keep_zip:
                        archive.unlink()
    except OSError as error:
        raise UserError(f"{root}: {error.strerror or error}", "data.folder") from error
    return added


def _check_names(classes: tuple[str, ...], sequences: tuple[str, ...]) -> None:
    """Refuse names that LaSOT does not have, before any request."""
    every = {name for names in official_split().values() for name in names}
    known = sorted({class_of(name) for name in every})
    problems: list[Problem] = []
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"its classes are {', '.join(known)}"
            problems.append(Problem(f"CLASSES: LaSOT has no class {name!r}; {hint}", "data.unknown_class"))
    for name in sequences:
        if name not in every or class_of(name) not in classes:
            text = f"--sequences: {name!r} is not a sequence of {', '.join(classes)}"
            problems.append(Problem(text, "data.unknown_sequence"))
    if problems:
        raise UserError(problems)


def _sequences_of(class_name: str, split: str) -> list[str]:
    lists = official_split()
    return [name for key in lists if split in (key, "all") for name in lists[key] if class_of(name) == class_name]


def _list_zips(hub: Hub, classes: Collection[str]) -> list[_Zip]:
    """The zips of the classes as the Hub lists them."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
    zips: dict[str, _Zip] = {}
    try:
        for entry in api.list_repo_tree(hub.repo, repo_type="dataset", revision=hub.revision):
            if not isinstance(entry, RepoFile) or entry.lfs is None:
                continue
            if re.fullmatch("[0-9a-f]{64}", entry.lfs.sha256) and re.fullmatch(r"[a-z-]{1,40}\.zip", entry.path):
                class_name = entry.path.removesuffix(".zip")
                zips[class_name] = _Zip(class_name, entry.path, entry.size, entry.lfs.sha256)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise UserError(f"the Hub does not list {hub.repo}: {_first_line(error)}", "download.list") from error
    unknown = [name for name in classes if name not in zips]
    if unknown:
        there = ", ".join(sorted(zips))
        texts = [f"CLASSES: {hub.repo} on the Hub has no {name}.zip; it has {there}" for name in unknown]
        raise UserError(texts, "download.no_zip")
    return [zips[name] for name in classes]


def _part(root: Path, zip_: _Zip) -> Path:
    """The growing file of a download; the digest in its name keeps another version of the zip from being continued."""
    return root / f".{zip_.path}.{zip_.sha256[:16]}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(zip_: _Zip, root: Path, hub: Hub) -> Path:
    """The verified zip in `root`. A download that was interrupted is continued, by this process or the next.

    With the client's `http_get`: its `hf_hub_download` discards what a killed process received.
    """
    archive, part = root / zip_.path, _part(root, zip_)
    if archive.exists() and sha256_file(archive) == zip_.sha256:
        return archive
    if _size(part) > zip_.size:
        part.unlink()
    url = hf_hub_url(hub.repo, zip_.path, repo_type="dataset", revision=hub.revision, endpoint=hub.endpoint)
    headers = build_hf_headers(token=hub.token or False)
    for failures in range(1, _TRIES + 1):
        try:
            with part.open("ab") as file:
                begun = file.tell()
                http_get(
                    url, file,
                    resume_size=begun, headers=headers, expected_size=zip_.size, displayed_filename=zip_.path,
                )  # fmt: skip
            break
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            if failures == _TRIES or not _is_transient(error):
                text = f"{zip_.path}: {_first_line(error)}; run the same command again to continue the download"
                raise UserError(text, "download.failed") from error
            _log.warning("%s: %s", zip_.path, _first_line(error))
            time.sleep(_PAUSE_S * 2**failures)
    if sha256_file(part) != zip_.sha256:
        part.unlink()
        text = f"{zip_.path}: the received bytes differ from what the Hub lists (sha256 {zip_.sha256}); deleted"
        raise UserError(text, "download.digest")
    part.replace(archive)
    return archive


def _is_transient(error: Exception) -> bool:
    """A broken connection or an overloaded server, which another attempt may find fixed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx2.TransportError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def unpack_class(archive: Path, class_name: str, root: Path, *, wanted: Collection[str], strict: bool) -> list[str]:
    """Unpack sequences of a class into `root/<class>/<class>-<n>/`; each appears complete or not at all.

    Args:
        archive: the zip; sequences are at its top or in a folder of the class.
        wanted: names of the sequences to unpack.
        strict: refuse a zip that lacks one of them, instead of logging it.

    Returns:
        names of the sequences that were unpacked.

    Raises:
        UserError: the zip is damaged, holds a name that leaves the folder, would grow beyond reason, or lacks a wanted
            sequence; or the disk is full; or a sequence in it is incomplete, in which case the others are in place.
    """
    temporary = root / f".unpack-{class_name}-{os.getpid()}"
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _check_members(opened, archive, class_name)
            present = {member.sequence for member in members}
            if lacking := sorted(set(wanted) - present):
                text = f"{archive.name} does not hold {', '.join(lacking)}; it holds {len(present)} sequences"
                if strict:
                    raise UserError(text, "zip.no_sequence")
                _log.warning("%s", text)
            names = sorted(present.intersection(wanted))
            chosen = [member for member in members if member.sequence in names]
            _require_space(root, sum(member.info.file_size for member in chosen), f"unpack {archive.name}")
            for member in chosen:
                path = temporary / member.sequence / member.inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member.info) as source, path.open("xb") as file:
                    shutil.copyfileobj(source, file)  # reading to the end checks the CRC
        return _move_complete(temporary, names, root / class_name, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        text = f"{archive}: damaged zip ({error}); delete it and download it again"
        raise UserError(text, "zip.damaged") from error
    except OSError as error:
        text = f"{archive}: cannot be unpacked into {root}: {error.strerror or error}"
        raise UserError(text, "zip.unpack") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_complete(temporary: Path, names: list[str], target: Path, archive: Path) -> list[str]:
    """Move the complete sequences to their place; report the others and keep them out."""
    problems: list[Problem] = []
    moved: list[str] = []
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        found: list[Problem] = []
        sequence = attempt(found, read_sequence, temporary / name, target.name)
        for problem in found:
            text = problem.replace(f"{temporary}/", "")
            problems.append(Problem(f"{archive.name}: {text}; {name} was not unpacked", problem.code))
        if sequence is None:
            continue
        if count := int(sequence.missing.sum()):
            _log.warning("%s: %d frame files of %s are missing in the zip", archive.name, count, name)
        (temporary / name).rename(target / name)
        moved.append(name)
    if problems:
        raise UserError(problems)
    return moved


def _require_space(folder: Path, needed_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        text = f"not enough space in {folder} to {what}: needs {_gb(needed_bytes)}, free are {_gb(free)}"
        raise UserError(text, "data.no_space")


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def _check_members(opened: zipfile.ZipFile, archive: Path, class_name: str) -> list[_Member]:
    """The members that belong to sequences, after every member was found harmless."""
    infos = opened.infolist()
    problems: list[str] = []
    members: list[_Member] = []
    seen: set[str] = set()
    ignored = 0
    sequence_name = re.compile(re.escape(class_name) + "-[0-9]{1,4}")
    for info in infos[:_MAX_MEMBERS]:
        reason = _why_hostile(info, seen)
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
    if len({(member.sequence, member.inside) for member in members}) < len(members):
        problems.append(f"{archive.name}: holds the same file of a sequence twice; nothing was unpacked")
    unpacked, packed = sum(info.file_size for info in infos), archive.stat().st_size
    if len(infos) > _MAX_MEMBERS or unpacked > packed * _MAX_GROWTH + _ALLOWANCE_BYTES:
        problems.append(
            f"{archive.name}: {len(infos)} members of {_gb(unpacked)} in a zip of {_gb(packed)} cannot be frames; "
            "nothing was unpacked"
        )
    if problems:
        raise UserError(problems[:50], "zip.hostile")
    if not members:
        raise UserError(f"{archive.name}: holds no sequence named {class_name}-<number>", "zip.no_sequence")
    if ignored:
        _log.info("%s: %d members outside of sequences were ignored", archive.name, ignored)
    return members


def _why_hostile(info: zipfile.ZipInfo, seen: set[str]) -> str | None:
    """Why a member must not be unpacked, or None."""
    name = info.orig_filename
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        return "would leave the folder"
    if any(ord(letter) < 32 for letter in name) or any(len(part.encode()) > 255 for part in parts):
        return "has an impossible name"
    if info.filename in seen:
        return "appears twice"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.file_size > _MAX_MEMBER_BYTES:
        return f"claims {_gb(info.file_size)}"
    return None
