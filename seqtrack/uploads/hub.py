"""A repo on the Hugging Face Hub as a target, through a client that gives up in time.

Imported by the child process only, since the Hub's client brings its own threads and connections. The library has no
timeouts, and repeats some requests six times without jitter and others never. It sends every request through one client
object, which this module makes: a status or a timeout that is worth another try reaches us soon, with its headers.
Commits name the head they were made on: a call whose reply was lost and that is applied late can never become a second
commit.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, set_client_factory
from huggingface_hub.constants import REGEX_COMMIT_OID
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from seqtrack.errors import UserError
from seqtrack.uploads.errors import HubRefusal, Unreachable, classify
from seqtrack.uploads.target import (
    Account,
    ChangedError,
    IgnoredError,
    Receipt,
    Remote,
    Staged,
    require_unchanged,
    safe_path,
)

_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)  # by a storage host: its address is good for some minutes
_STAGES = (
    ("/api/whoami", "whoami"),
    ("/api/repos/create", "create"),
    ("/preupload/", "preupload"),
    ("/info/lfs/objects/batch", "batch"),
    ("/commit/", "commit"),
    ("/paths-info/", "listing"),
    ("/tree/", "listing"),
    ("/resolve/", "download"),
    ("/xet-", "xet"),
    ("/api/", "repo"),
)
_PATHS_PER_CALL = 200  # the form that carries them has a limit
_BRANCH = "main"
# Sent with every question which files to take. Without it the repo's own .gitignore would keep files back, and the
# library would leave them out of the commit silently.
_IGNORE_NOTHING = "# every file is wanted\n"
_INLINE_LIMIT = 32 * 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Bounds of every request, in seconds; `tries` is how often one request may be sent."""

    connect_s: float = 10.0
    read_s: float = 45.0
    tries: int = 3


class Traffic:
    """What went through the clients of this process; `stored` counts PUTs that arrived."""

    def __init__(self) -> None:
        self.stored = 0
        self.parts: set[str] = set()  # addresses that take parts of a large file
        self.failed_parts: Counter[str] = Counter()
        self.lock = threading.Lock()


class BoundedClient(httpx2.Client):
    """A client with timeouts that raises what must end a call."""

    def __init__(self, limits: Limits, traffic: Traffic) -> None:
        super().__init__(timeout=httpx2.Timeout(limits.read_s, connect=limits.connect_s), follow_redirects=True)
        self._limits, self._traffic = limits, traffic

    def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        """Send, and repeat what is safe to repeat.

        Raises:
            HubRefusal: a status that another try may cure, after the last try; at once for one that asks to wait and
                for a storage address that is refused.
            Unreachable: no answer. A timeout is not repeated here: the next try must have a longer timeout.
        """
        # The library passes timeout=None here and there, which would undo the bound.
        request.extensions["timeout"] = self.timeout.as_dict()
        is_put, path = request.method == "PUT", request.url.path
        stage = "storage" if is_put else next((name for part, name in _STAGES if part in path), "storage")
        # A commit may have been made, and an object stored, though the reply was lost: the caller asks first.
        tries = 1 if stage == "commit" or is_put else self._limits.tries
        for attempt in range(1, tries + 1):
            try:
                response = super().send(request, **kwargs)
            except httpx2.TimeoutException as error:
                reason = f"no answer for {self._limits.read_s:g} s"
                raise Unreachable(stage, reason, timed_out=True) from error
            except httpx2.TransportError as error:
                if self._library_may_repeat(request):
                    raise
                if attempt == tries:
                    raise Unreachable(stage, str(error) or "connection lost", timed_out=False) from error
            else:
                status = response.status_code
                expired = is_put and status in _EXPIRED
                passing = status in _RETRYABLE and (status == 429 or not self._library_may_repeat(request))
                if not (expired or passing):
                    self._note(request, response, stage)
                    return response
                if expired or attempt == tries or status == 429 or "retry-after" in response.headers:
                    text = response.read().decode(errors="replace")[:2000]
                    response.close()
                    raise HubRefusal(status, stage, dict(response.headers), text)
                response.close()
            time.sleep(random.uniform(0.0, 0.3 * 2.0**attempt))
        raise AssertionError("the last try returns or raises")

    def _note(self, request: httpx2.Request, response: httpx2.Response, stage: str) -> None:
        """Count what was stored, and learn from a batch's answer which addresses take parts of a file.

        Raises:
            HubRefusal: the server had trouble with one object of the batch; the library would drop its status.
        """
        if not response.is_success or (stage != "batch" and request.method != "PUT"):
            return
        if request.method == "PUT":
            with self._traffic.lock:
                self._traffic.stored += 1
        elif b'"chunk_size"' in response.content or b'"error"' in response.content:
            for item in response.json().get("objects", []):
                error = item.get("error") or {}
                if error.get("code") in _RETRYABLE:
                    raise HubRefusal(error["code"], stage, dict(response.headers), str(error.get("message", "")))
                header = ((item.get("actions") or {}).get("upload") or {}).get("header") or {}
                self._traffic.parts.update(str(httpx2.URL(v)) for k, v in header.items() if k.isdigit())

    def _library_may_repeat(self, request: httpx2.Request) -> bool:
        """Whether the library shall send a part of a large file again: it rewinds, and the other parts stay good."""
        url = str(request.url)
        if request.method != "PUT" or url not in self._traffic.parts:
            return False
        with self._traffic.lock:
            self._traffic.failed_parts[url] += 1
            return self._traffic.failed_parts[url] < self._limits.tries


def bound_client(limits: Limits) -> Traffic:
    """Make the library use `BoundedClient` from now on, in this process."""
    traffic = Traffic()
    set_client_factory(lambda: BoundedClient(limits, traffic))
    return traffic


class HubTarget:
    """One repo.

    Args:
        repo: "owner/name" of a model repo, or "datasets/owner/name".
        token: None lets the client look where `hf auth login` puts it.
        endpoint: address of the Hub; None for the client's own default.
        private: whether a repo that is made here is private.
        limits: of every request; the client of the whole process is bound to them.
    """

    def __init__(
        self, repo: str, *, token: str | None, endpoint: str | None, private: bool, limits: Limits | None = None
    ) -> None:
        kind = "dataset" if repo.startswith("datasets/") else "model"
        self._repo: dict[str, Any] = {"repo_id": repo.removeprefix("datasets/"), "repo_type": kind}
        self._name, self._token, self._private = repo, token, private
        self._limits = limits or Limits()
        self._traffic = bound_client(self._limits)
        self._api = HfApi(endpoint=endpoint, token=token)

    def prepare(self, *, make: bool = True) -> Account:
        account = self._api.whoami()
        if make:
            self._api.create_repo(**self._repo, private=self._private, exist_ok=True)
        else:
            self._api.repo_info(**self._repo)
            # This call needs the right to write; nothing is stored by asking.
            question = CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=b"?")
            self._api.preupload_lfs_files(**self._repo, additions=[question], revision=_BRANCH)
        return Account(name=str(account.get("name", "?")), place=f"{self._api.endpoint}/{self._name}")

    def head(self) -> str | None:
        try:
            sha = self._api.repo_info(**self._repo, revision=_BRANCH).sha
        except RevisionNotFoundError:  # a repo without any commit has no branch yet
            return None
        return sha if sha and REGEX_COMMIT_OID.fullmatch(sha) else None

    def look(self, paths: Sequence[str], revision: str | None = None) -> dict[str, Remote]:
        found: dict[str, Remote] = {}
        for start in range(0, len(paths), _PATHS_PER_CALL):
            asked = list(paths[start : start + _PATHS_PER_CALL])
            try:
                listed = self._api.get_paths_info(**self._repo, paths=asked, revision=revision or _BRANCH)
            except RevisionNotFoundError:
                if revision is not None:
                    raise
                return {}
            found.update((remote.path, remote) for remote in _files(listed))
        return found

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> Receipt:
        require_unchanged(files)  # the library takes a file that is gone for a wrong argument
        operations = [_operation(staged) for staged in files]
        for group in _without_twins(operations):
            self._store(group)
        for operation in operations:
            # A commit of nothing but ignored files would hold nothing, and the library would not say so.
            if getattr(operation, "_should_ignore", False):
                raise IgnoredError(operation.path_in_repo, "ignored by the target; look at the .gitignore of the repo")
        # Over Xet a file that was written to while it was sent arrives without an error; nothing is visible yet.
        require_unchanged(files)
        chosen = _that_fit(operations)
        info = self._api.create_commit(
            **self._repo, operations=chosen, commit_message=message, revision=_BRANCH, parent_commit=parent
        )
        return Receipt(str(info.oid), tuple(operation.path_in_repo for operation in chosen))

    def _store(self, operations: list[CommitOperationAdd]) -> None:
        """Send the bytes of large files, without making them visible.

        Repeated as long as something arrives: each time the server is asked first which objects it has, so that one
        whose reply was lost is not sent again. A server that takes a file and has it no longer when asked again must
        not keep us here forever.
        """
        fruitless, most = 0, self._limits.tries + len(operations)
        for attempt in range(1, most + 1):
            before = self._traffic.stored
            try:
                self._api.preupload_lfs_files(
                    **self._repo,
                    additions=operations,
                    revision=_BRANCH,
                    num_threads=3,
                    gitignore_content=_IGNORE_NOTHING,
                )
                return
            except Exception as error:
                fruitless = fruitless + 1 if self._traffic.stored == before else 0
                fault = classify(error)
                passing = fault.kind == "network" and fault.wait_s == 0.0
                if not passing or fruitless >= self._limits.tries or attempt == most:
                    raise
                time.sleep(random.uniform(0.0, 0.5 * 2.0**fruitless))

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        try:
            place = hf_hub_download(
                **self._repo,
                filename=safe_path(path),
                revision=revision or _BRANCH,
                local_dir=folder,
                token=self._token,
                endpoint=self._api.endpoint,
            )
        except (RemoteEntryNotFoundError, RevisionNotFoundError) as error:
            at = revision or _BRANCH
            raise UserError(f"{self._name} has no {path} at revision {at}", code="upload.no_such_file") from error
        return Path(place)

    def list(self, revision: str | None = None) -> list[Remote]:
        return list(_files(self._api.list_repo_tree(**self._repo, recursive=True, revision=revision or _BRANCH)))


def _operation(staged: Staged) -> CommitOperationAdd:
    operation = CommitOperationAdd(path_in_repo=safe_path(staged.path), path_or_fileobj=staged.source)
    if operation.upload_info.size != staged.size:
        raise ChangedError(staged.path)
    operation.upload_info.sha256 = bytes.fromhex(staged.sha256)  # spares a second reading of the whole file
    return operation


def _without_twins(operations: Sequence[CommitOperationAdd]) -> list[list[CommitOperationAdd]]:
    """First one file of each content, then those with the same bytes: by then the server has them.

    Asked for both at once, it would be sent the same object twice.
    """
    first: dict[bytes, CommitOperationAdd] = {}
    for operation in operations:
        first.setdefault(operation.upload_info.sha256, operation)
    twins = [operation for operation in operations if first[operation.upload_info.sha256] is not operation]
    return [list(first.values()), twins] if twins else [list(first.values())]


def _that_fit(operations: Sequence[CommitOperationAdd]) -> list[CommitOperationAdd]:
    """All large files, and small ones up to a limit.

    Small files travel inside the commit call, which the library builds in memory several times over. After
    `preupload_lfs_files` a large file's source is empty, as documented; what is left is a small one.
    Once a small one does not fit, none after it goes: it could be the manifest of a checkpoint that did not fit.
    """
    chosen, inline, full = [], 0, False
    for operation in operations:
        size = 0 if operation.path_or_fileobj == b"" else operation.upload_info.size
        full = full or bool(inline and inline + size > _INLINE_LIMIT)
        if full and size:
            continue
        inline += size
        chosen.append(operation)
    return chosen


def _files(listed: Iterable[Any]) -> Iterable[Remote]:
    for item in listed:
        if isinstance(item, RepoFile):
            digest, size = (item.lfs.sha256, item.lfs.size) if item.lfs else (None, item.size)
            # Two sizes of one file that differ: something is wrong there, and no file of ours has -1 bytes.
            yield Remote(item.path, item.size if size == item.size else -1, digest, item.blob_id)


def open_hub(settings: dict[str, Any]) -> HubTarget:
    """A repo as a target; bounds the client of this process."""
    return HubTarget(
        settings["place"],
        token=settings.get("token"),
        endpoint=settings.get("endpoint"),
        private=bool(settings.get("private", True)),
        limits=Limits(settings["connect_s"], settings["read_s"], int(settings["tries"])),
    )
