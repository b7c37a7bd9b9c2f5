"""Fetching classes of LaSOT from the Hub: listed, resumed, verified by digest, then unpacked.

Nothing is unpacked whose digest is not the one that the Hub lists. From a zip come only complete sequences,
and only into the data folder.
"""

import fcntl
import logging
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, RepoFile, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.config.environment import read_environment, read_token
from seqtrack.data.annotations import attempt, class_of
from seqtrack.data.lasot import find_layout, official_split, unpublished_classes
from seqtrack.data.sequence import read_sequence
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import short_repr

_log = logging.getLogger(__name__)

REPO = "l-lt/LaSOT"
_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError)  # of the Hub's client
_TRIES = 5
_PAUSE_S = 0.5
# The files of a sequence, possibly below other folders. Whatever else a zip holds is not unpacked.
_MEMBER = r"(?:.*/)?({}-[0-9]{{1,4}})/((?:img/[0-9]{{8}}\.jpg)|[a-z_]+\.txt)"


def data_hub(environ: Mapping[str, str]) -> HfApi:
    """The Hub that data sets come from, with the environment's own token only."""
    # False: the token that huggingface_hub may find elsewhere is not used.
    return HfApi(endpoint=read_environment(environ).hf_endpoint, token=read_token(environ) or False)


def download_classes(
    data_dir: Path,
    classes: tuple[str, ...],
    *,
    hub: HfApi,
    repo: str = REPO,
    split: str = "all",
    sequences: tuple[str, ...] = (),
) -> dict[str, list[str]]:
    """Fetch those sequences of the classes that the data folder lacks, and return their names by class.

    Args:
        data_dir: the data set goes to `data_dir/lasot`, or to where its sequences already are.
        hub: its endpoint and token are used.
        split: "train", "test" or "all".
        sequences: empty for all of the split.

    Raises:
        UserError: an unknown class or sequence, no network, no space, or a zip that is damaged or hostile.
    """
    every = {name: split for split, names in official_split().items() for name in names}
    if problems := unpublished_classes(classes):
        raise UserError(problems)
    if unknown := [name for name in sequences if name not in every or class_of(name) not in classes]:
        text = f"--sequences: {', '.join(unknown)}: not among the sequences of {', '.join(classes)}"
        raise UserError(text, "data.unknown_sequence")
    wanted = [name for name in sequences or every if split in (every[name], "all")]
    try:
        root = find_layout(data_dir).root
    except UserError:
        root = data_dir if data_dir.name.lower() == "lasot" else data_dir / "lasot"
    added: dict[str, list[str]] = {}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".download.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lacking = [one for one in wanted if not ((root / class_of(one) / one).exists() or (root / one).exists())]
            missing = {name: [one for one in lacking if class_of(one) == name] for name in classes}
            if lacking:
                _log.info("downloading %s to %s", ", ".join(name for name in classes if missing[name]), root)
            zips = _list_zips(hub, repo, [name for name in classes if missing[name]])
            for name, names in missing.items():
                added[name] = []
                if names:
                    archive = _download(hub, repo, zips[name], root)
                    added[name] = _unpack(archive, root, name, names, strict=bool(sequences))
                    _log.info("%s: %d sequences unpacked into %s", name, len(added[name]), root / name)
                    archive.unlink()
    except OSError as error:
        raise UserError(f"{root}: {error.strerror or error}", "data.folder") from error
    return added


def _list_zips(hub: HfApi, repo: str, classes: list[str]) -> dict[str, RepoFile]:
    """The zips of the classes as the Hub lists them."""
    try:
        paths = [f"{name}.zip" for name in classes]
        found = hub.get_paths_info(repo, paths, repo_type="dataset") if paths else []
    except _ERRORS as error:
        raise UserError(f"the Hub does not list {repo}: {short_repr(error, 300)}", "download.list") from error
    zips = {one.path.removesuffix(".zip"): one for one in found if isinstance(one, RepoFile) and one.lfs}
    if unknown := [f"{name}.zip" for name in classes if name not in zips]:
        raise UserError(f"CLASSES: {repo} on the Hub has no {', '.join(unknown)}", "download.no_zip")
    return zips


def _download(hub: HfApi, repo: str, listed: RepoFile, root: Path) -> Path:
    """The verified zip, a hidden file in `root`. A download that was interrupted is continued, also by another process.

    With the client's `http_get`: its `hf_hub_download` discards what a killed process received.
    """
    assert listed.lfs is not None
    sha256 = listed.lfs.sha256
    # The digest in its name keeps another version of the zip from being continued.
    part = root / f".{listed.path}.{sha256[:16]}.part"
    # A zip is as large as its contents, and both exist until it is unpacked.
    needed = 2 * listed.size - (part.stat().st_size if part.exists() else 0)
    if needed > (free := shutil.disk_usage(root).free):
        text = f"{root}: {listed.path} needs {needed / 1e9:.2f} GB, free are {free / 1e9:.2f} GB"
        raise UserError(text, "data.no_space")
    url = hf_hub_url(repo, listed.path, repo_type="dataset", endpoint=hub.endpoint)
    for tries in range(1, _TRIES + 1):
        try:
            with part.open("ab") as file:
                headers = build_hf_headers(token=hub.token)
                http_get(url, file, resume_size=file.tell(), headers=headers, expected_size=listed.size)
            break
        except _ERRORS as error:
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if refused or tries == _TRIES:
                text = f"{listed.path}: {short_repr(error, 300)}; run the same command again to continue the download"
                raise UserError(text, "download.failed") from error
            _log.warning("%s: %s", listed.path, short_repr(error, 300))
            time.sleep(_PAUSE_S * 2**tries)
    if sha256_file(part) != sha256:
        part.unlink()
        text = f"{listed.path}: the received bytes differ from what the Hub lists (sha256 {sha256}); deleted"
        raise UserError(text, "download.digest")
    return part


def _unpack(archive: Path, root: Path, class_name: str, wanted: Collection[str], *, strict: bool) -> list[str]:
    """Unpack sequences into `root/<class>/<class>-<n>/`, each complete or not at all, and return their names.

    Other members are ignored, and only the parts of a name that `_MEMBER` matches become a path.

    Args:
        strict: refuse a zip that lacks one of the wanted, instead of logging it.

    Raises:
        UserError: the zip is damaged or lacks a wanted sequence; the disk is full; or a sequence in it is incomplete,
            in which case the others are in place.
    """
    temporary, target, zip_name = root / f".unpack-{class_name}", root / class_name, f"{class_name}.zip"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that died: we hold the lock
    pattern = re.compile(_MEMBER.format(re.escape(class_name)))
    problems: list[Problem] = []
    try:
        with zipfile.ZipFile(archive) as opened:
            matches = ((info, pattern.fullmatch(info.filename)) for info in opened.infolist())
            chosen = [(info, match) for info, match in matches if match and match[1] in wanted]
            names = sorted({match[1] for _, match in chosen})
            if lacking := sorted({*wanted} - {*names}):
                text = f"{zip_name} does not hold {', '.join(lacking)}"
                if strict or not names:
                    raise UserError(text, "zip.no_sequence")
                _log.warning("%s", text)
            for info, match in chosen:
                path = temporary / match[1] / match[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, path.open("xb") as file:
                    shutil.copyfileobj(source, file)  # reading to the end checks the CRC
        target.mkdir(exist_ok=True)
        complete = [name for name in names if attempt(problems, read_sequence, temporary / name, class_name)]
        for name in complete:
            (temporary / name).rename(target / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{zip_name}: damaged zip ({error}) in {archive}", "zip.damaged") from error
    except OSError as error:
        text = f"{zip_name}: cannot be unpacked into {root}: {error.strerror or error}"
        raise UserError(text, "zip.unpack") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if problems:
        raise UserError([Problem(f"{zip_name}: {one}; this sequence is left out", one.code) for one in problems])
    return complete
