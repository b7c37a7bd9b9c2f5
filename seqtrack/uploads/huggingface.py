"""A model repo on the Hugging Face Hub as a target.

Imported by the child process only, since the client brings its own threads and connections. Commits name the head
they were made on: a call whose reply was lost and that is applied late can then never become a second commit.
"""

import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.constants import REGEX_COMMIT_OID
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from seqtrack.errors import UserError
from seqtrack.uploads.errors import IgnoredError, classify
from seqtrack.uploads.hubclient import Limits, bound_client
from seqtrack.uploads.target import Account, Receipt, Remote, Staged, require_unchanged, safe_path

_ASK_AT_ONCE = 200  # paths in one listing call; the form that carries them has a limit
_BRANCH = "main"
# Sent along with every question which files to take. Without it the repo's own .gitignore would keep files back, and
# the library would leave them out of the commit without a word.
_IGNORE_NOTHING = "# every file is wanted\n"
_INLINE_LIMIT = 32 * 1024 * 1024


class HubTarget:
    """One model repo.

    Args:
        repo: "owner/name".
        token: None lets the client look where `hf auth login` puts it.
        endpoint: address of the Hub; None for the client's own default.
        private: whether a repo that is made here is private.
        limits: of every request; the client of the whole process is bound to them.
    """

    def __init__(
        self, repo: str, *, token: str | None, endpoint: str | None, private: bool, limits: Limits | None = None
    ) -> None:
        self._repo, self._token, self._private = repo, token, private
        self._limits = limits or Limits()
        self._traffic = bound_client(self._limits)
        self._api = HfApi(endpoint=endpoint, token=token)

    def prepare(self, *, make: bool = True) -> Account:
        account = self._api.whoami()
        if make:
            self._api.create_repo(self._repo, private=self._private, exist_ok=True, repo_type="model")
        else:
            self._api.repo_info(self._repo)
            # Only who may write is told how a file would be taken; nothing is stored by asking.
            question = CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=b"?")
            self._api.preupload_lfs_files(self._repo, [question], revision=_BRANCH)
        return Account(name=str(account.get("name", "?")), place=f"{self._api.endpoint}/{self._repo}")

    def head(self) -> str | None:
        try:
            sha = self._api.repo_info(self._repo, revision=_BRANCH).sha
        except RevisionNotFoundError:  # a repo without any commit has no branch yet
            return None
        return sha if sha and REGEX_COMMIT_OID.fullmatch(sha) else None

    def look(self, paths: Sequence[str], revision: str | None = None) -> dict[str, Remote]:
        found: dict[str, Remote] = {}
        for start in range(0, len(paths), _ASK_AT_ONCE):
            asked = list(paths[start : start + _ASK_AT_ONCE])
            try:
                listed = self._api.get_paths_info(self._repo, asked, revision=revision or _BRANCH)
            except RevisionNotFoundError:
                if revision is not None:
                    raise
                return {}
            found.update((remote.path, remote) for remote in _files(listed))
        return found

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> Receipt:
        operations = [_operation(staged) for staged in files]
        for share in _without_twins(operations):
            self._store(share)
        _require_wanted(operations)
        # Over Xet a file that was written to while it was sent arrives without an error; nothing is visible yet.
        require_unchanged(files)
        chosen = _that_fit(operations)
        info = self._api.create_commit(
            self._repo,
            chosen,
            commit_message=message,
            revision=_BRANCH,
            parent_commit=parent,
        )
        return Receipt(str(info.oid), tuple(operation.path_in_repo for operation in chosen))

    def _store(self, operations: list[CommitOperationAdd]) -> None:
        """Send the bytes of large files, without making them visible.

        Repeated as long as something arrives: each time the server is asked first which objects it has, so that one
        whose reply was lost is not sent again. A server that takes a file and has it no longer when asked again must
        not keep us here for ever.
        """
        fruitless, most = 0, self._limits.tries + len(operations)
        for attempt in range(1, most + 1):
            before = self._traffic.stored
            try:
                self._api.preupload_lfs_files(
                    self._repo, operations, revision=_BRANCH, num_threads=3, gitignore_content=_IGNORE_NOTHING
                )
                return
            except Exception as error:
                fruitless = fruitless + 1 if self._traffic.stored == before else 0
                fault = classify(error)
                passing = fault.kind in ("server", "network") and fault.wait_s == 0.0
                if not passing or fruitless >= self._limits.tries or attempt == most:
                    raise
                time.sleep(random.uniform(0.0, 0.5 * 2.0**fruitless))

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        try:
            place = hf_hub_download(
                self._repo,
                safe_path(path),
                revision=revision or _BRANCH,
                local_dir=folder,
                token=self._token,
                endpoint=self._api.endpoint,
            )
        except (RemoteEntryNotFoundError, RevisionNotFoundError) as error:
            raise UserError(f"{self._repo} has no {path} at revision {revision or _BRANCH}") from error
        return Path(place)

    def list(self, revision: str | None = None) -> list[Remote]:
        return list(_files(self._api.list_repo_tree(self._repo, recursive=True, revision=revision or _BRANCH)))


def _operation(staged: Staged) -> CommitOperationAdd:
    operation = CommitOperationAdd(path_in_repo=safe_path(staged.path), path_or_fileobj=staged.source)
    if operation.upload_info.size != staged.size:
        raise UserError(f"{staged.path} has {operation.upload_info.size} bytes; {staged.size} were hashed")
    operation.upload_info.sha256 = bytes.fromhex(staged.sha256)  # spares a second reading of the whole file
    return operation


def _without_twins(operations: Sequence[CommitOperationAdd]) -> list[list[CommitOperationAdd]]:
    """First one file of each content, then those with the same bytes: by then the server has them.

    Asked for both at once, it would be sent the same object twice.
    """
    first: dict[bytes, CommitOperationAdd] = {}
    for operation in operations:
        first.setdefault(operation.upload_info.sha256, operation)
    chosen = list(first.values())
    twins = [operation for operation in operations if first[operation.upload_info.sha256] is not operation]
    return [chosen, twins] if twins else [chosen]


def _require_wanted(operations: Sequence[CommitOperationAdd]) -> None:
    """Raise for a file that the server wants ignored all the same, before a commit that holds nothing is made of it.

    Raises:
        IgnoredError: naming the first.
    """
    for operation in operations:
        if getattr(operation, "_should_ignore", False):
            raise IgnoredError(operation.path_in_repo)


def _that_fit(operations: Sequence[CommitOperationAdd]) -> list[CommitOperationAdd]:
    """All large files, and small ones up to a limit.

    Small files travel inside the commit call, which the library builds in memory several times over. After
    `preupload_lfs_files` a large file's source is empty, as its documentation says; what is left is a small one.
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
