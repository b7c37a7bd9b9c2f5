"""Fetching classes of LaSOT from the Hub: listed, resumed, verified by digest, then unpacked.

Knows the Hub's client and the data set's form there. It must not know of training. A download that was cut continues
where it stopped; nothing is unpacked whose digest is not the one the Hub lists.
"""

import difflib
import fcntl
import logging
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import HfApi, RepoFile, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.data.lasot import class_of, find_layout, official_split
from seqtrack.data.unpack import require_space, unpack_class
from seqtrack.errors import UserError

_log = logging.getLogger(__name__)

REPO = "l-lt/LaSOT"
_ROOM = 1.02
_TIMEOUT_S = 60.0
_REPORT_S = 10.0
_TRIES = 5
_PAUSE_S = 0.5
_PARTIAL_CONTENT = 206


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


def download_classes(
    data_dir: Path,
    classes: tuple[str, ...],
    *,
    hub: Hub,
    split: str = "all",
    sequences: tuple[str, ...] = (),
    keep_zip: bool = False,
) -> dict[str, list[str]]:
    """Make the classes' sequences are in the data folder.

    Args:
        data_dir: the data set goes to `data_dir/lasot`, or to where its sequences already are.
        split: "train", "test" or "all".
        sequences: only these; empty for all of the split.
        keep_zip: leave each zip next to the classes.

    Returns:
        names of the sequences that were added, by class.

    Raises:
        UserError: an unknown class or sequence, no network, no room, or a zip that is damaged or hostile.
    """
    _check_names(classes, sequences)
    root = _root(data_dir)
    wanted = {name: _wanted(name, split, sequences) for name in classes}
    missing = {
        name: [s for s in names if not (root / name / s).exists() and not (root / s).exists()]
        for name, names in wanted.items()
    }
    todo = [name for name in classes if missing[name]]
    for name in classes:
        if name not in todo:
            _log.info("%s: all %d sequences are there", name, len(wanted[name]))
    if not todo:
        return {name: [] for name in classes}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".download.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            added = _fetch(root, todo, missing, hub, keep_zip=keep_zip, strict=bool(sequences))
    except OSError as error:
        raise UserError(f"{root}: {error.strerror or error}") from error
    return {name: added.get(name, []) for name in classes}


def _root(data_dir: Path) -> Path:
    try:
        return find_layout(data_dir).root
    except UserError:
        return data_dir if data_dir.name.lower() == "lasot" else data_dir / "lasot"


def _check_names(classes: tuple[str, ...], sequences: tuple[str, ...]) -> None:
    """Refuse names that LaSOT does not have, before anything is asked of the network."""
    lists = official_split()
    every = {name for names in lists.values() for name in names}
    known = sorted({class_of(name) for name in every})
    problems = []
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"its classes are {', '.join(known)}"
            problems.append(f"CLASSES: LaSOT has no class {name!r}; {hint}")
    for name in sequences:
        if name not in every or class_of(name) not in classes:
            problems.append(f"--sequences: {name!r} is no sequence of {', '.join(classes)}")
    if problems:
        raise UserError(problems)


def _wanted(class_name: str, split: str, sequences: tuple[str, ...]) -> list[str]:
    """Names of the sequences of a class that are asked for."""
    lists = official_split()
    names = [name for key in lists if split in (key, "all") for name in lists[key] if class_of(name) == class_name]
    if sequences:
        names = [name for name in names if name in sequences]
    return names


def _fetch(
    root: Path, todo: list[str], missing: dict[str, list[str]], hub: Hub, *, keep_zip: bool, strict: bool
) -> dict[str, list[str]]:
    listed = _list(hub, todo)
    # A zip is as large as what it holds, and both are there until it is unpacked.
    parts = {zip_.class_name: _part(root, zip_) for zip_ in listed}
    largest = max(zip_.size for zip_ in listed)
    rest = sum(zip_.size for zip_ in listed) - sum(p.stat().st_size for p in parts.values() if p.exists())
    require_space(root, int((max(0, rest) + largest) * _ROOM), f"download and unpack {', '.join(todo)}")
    added: dict[str, list[str]] = {}
    for zip_ in listed:
        archive = root / zip_.path
        if not (archive.exists() and sha256_file(archive) == zip_.sha256):
            _download(zip_, parts[zip_.class_name], hub)
            parts[zip_.class_name].replace(archive)
        added[zip_.class_name] = unpack_class(
            archive, zip_.class_name, root, wanted=missing[zip_.class_name], strict=strict
        )
        _log.info(
            "%s: %d sequences unpacked into %s", zip_.class_name, len(added[zip_.class_name]), root / zip_.class_name
        )
        if not keep_zip:
            archive.unlink()
    return added


def _part(root: Path, zip_: _Zip) -> Path:
    """Where a download grows; the digest in the name keeps what was begun of another version from being continued."""
    return root / f".{zip_.path}.{zip_.sha256[:16]}.part"


def _list(hub: Hub, classes: Collection[str]) -> list[_Zip]:
    """The zips of the classes as the Hub lists them."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
    try:
        entries = [
            entry
            for entry in api.list_repo_tree(hub.repo, repo_type="dataset", revision=hub.revision)
            if isinstance(entry, RepoFile) and entry.path.endswith(".zip")
        ]
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise UserError(f"the Hub does not list {hub.repo}: {_short(error)}") from error
    zips: dict[str, _Zip] = {}
    for entry in entries:
        digest = entry.lfs.sha256 if entry.lfs is not None else ""
        if re.fullmatch("[0-9a-f]{64}", digest) and re.fullmatch(r"[a-z-]{1,40}\.zip", entry.path):
            class_name = entry.path[: -len(".zip")]
            zips[class_name] = _Zip(class_name, entry.path, entry.size, digest)
    unknown = [name for name in classes if name not in zips]
    if unknown:
        raise UserError(
            [f"CLASSES: {hub.repo} on the Hub has no {name}.zip; it has {', '.join(sorted(zips))}" for name in unknown]
        )
    return [zips[name] for name in classes]


def _download(zip_: _Zip, part: Path, hub: Hub) -> None:
    """Fetch into `part`, continuing where it ends, and compare the digest."""
    url = hf_hub_url(hub.repo, zip_.path, repo_type="dataset", revision=hub.revision, endpoint=hub.endpoint)
    if part.exists() and part.stat().st_size > zip_.size:
        part.unlink()
    failures = 0
    with part.open("ab") as file:
        while (begun := file.tell()) < zip_.size:
            if begun:
                _log.info("%s: continuing at %.1f of %.1f MB", zip_.path, begun / 1e6, zip_.size / 1e6)
            try:
                _receive(url, file, zip_, hub)
            except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
                # A connection that brought something is no failure: over hours it breaks more often than five times.
                failures = 0 if file.tell() > begun else failures + 1
                if failures == _TRIES or not _is_passing(error):
                    text = f"{zip_.path}: {_short(error)}; the same command continues where this one stopped"
                    raise UserError(text) from error
                _log.warning("%s: %s", zip_.path, _short(error))
                time.sleep(_PAUSE_S * 2**failures)
    if part.stat().st_size != zip_.size or sha256_file(part) != zip_.sha256:
        part.unlink()
        raise UserError(f"{zip_.path}: what arrived is not what the Hub lists (sha256 {zip_.sha256}); it was deleted")


def _receive(url: str, file: BinaryIO, zip_: _Zip, hub: Hub) -> None:
    """Append what one connection brings. The library's own download drops up to 10 MB when a connection breaks."""
    headers = build_hf_headers(token=hub.token or False)
    begun = file.tell()
    if begun:
        headers["Range"] = f"bytes={begun}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
        hf_raise_for_status(answer)
        if begun and answer.status_code != _PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()
        said = time.monotonic()
        for block in answer.iter_bytes():
            if file.tell() + len(block) > zip_.size:
                raise OSError(f"the server sends more than the {zip_.size} bytes that are listed")
            file.write(block)
            if time.monotonic() - said > _REPORT_S:
                said = time.monotonic()
                _log.info("%s: %.1f of %.1f MB", zip_.path, file.tell() / 1e6, zip_.size / 1e6)
        file.flush()


def _is_passing(error: Exception) -> bool:
    """A broken connection or an overloaded server, which another try may find fixed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx2.TransportError)


def _short(error: Exception) -> str:
    """The first line of an error; a client's message continues for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
