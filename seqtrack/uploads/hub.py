"""A repo on the Hugging Face Hub as a target, through a client that gives up in time.

Imported by the child process only, since the Hub's client brings its own threads and connections. The library has no
timeouts, and repeats some requests six times without jitter and others never. It sends every request through one client
object, which this module makes: a status or a timeout that is worth another try reaches us soon, with its headers.
Commits name the head they were made on: a call whose reply was lost and that is applied late can never become a second
commit.
"""

import contextlib
import functools
import os
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, set_client_factory
from huggingface_hub.constants import REGEX_COMMIT_OID
from huggingface_hub.errors import HfUriError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import hf_request_event_hook

from seqtrack.errors import UserError
from seqtrack.uploads.errors import HubRefusal, retry
from seqtrack.uploads.target import (
    ChangedError,
    Digests,
    FileError,
    Staged,
    TargetSettings,
    require_unchanged,
    safe_path,
)

_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
_PATHS_PER_CALL = 200  # the form that carries them has a limit
_BRANCH = "main"
_CONNECT_S = 10.0
# Sent with every question which files to take. Without it the repo's own .gitignore would keep files back, and the
# library would leave them out of the commit silently.
_IGNORE_NOTHING = "# every file is wanted\n"


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """One per process: reading the certificates takes 0.1 s, and the library makes a new client after each failure."""
    return httpx2.create_ssl_context()


class BoundedClient(httpx2.Client):
    """A client with timeouts that raises what must end a call.

    Raises:
        UserError: a variable for certificates or a proxy that cannot be followed.
    """

    def __init__(self, read_s: float, tries: int) -> None:
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            if os.environ.get(name) and not Path(os.environ[name]).exists():
                text = f"{name} (or REQUESTS_CA_BUNDLE) is {os.environ[name]}, which does not exist"
                raise UserError(text, code="upload.setup")
        try:
            super().__init__(
                verify=_ssl_context(),
                timeout=httpx2.Timeout(read_s, connect=_CONNECT_S),
                follow_redirects=True,
                event_hooks={"request": [hf_request_event_hook]},  # the library's: it obeys HF_HUB_OFFLINE
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            text = f"a proxy or certificate variable (HTTPS_PROXY, SSL_CERT_FILE) cannot be followed: {error}"
            raise UserError(text, code="upload.setup") from error
        self._read_s, self._tries = read_s, tries

    def send(self, request: httpx2.Request, **kwargs: object) -> httpx2.Response:
        """Send, and repeat what is safe to repeat.

        Raises:
            HubRefusal: no answer, or a status that another try may cure, after the last try.
        """
        # The library passes timeout=None here and there, which would undo the bound.
        request.extensions["timeout"] = self.timeout.as_dict()
        if is_xet := "-token/" in request.url.path:  # without Xet there is plain HTTP
            request.extensions["timeout"] = httpx2.Timeout(min(self._read_s, _CONNECT_S)).as_dict()
        # A part of a large file is the library's to repeat: it rewinds, and the other parts stay good.
        is_part = request.method == "PUT" and "partnumber=" in str(request.url).lower()

        def once() -> httpx2.Response:
            try:
                response = super(BoundedClient, self).send(request, **kwargs)  # type: ignore[arg-type]
            except httpx2.TransportError as error:
                if is_part:
                    raise
                raise HubRefusal(None) from (ConnectionError(f"no access: {error}") if is_xet else error)
            if response.status_code in _RETRYABLE and not is_part:
                response.read()
                raise HubRefusal(response)
            return response

        # A commit may have been made, and an object stored, though the reply was lost: the caller asks first.
        is_once = is_xet or request.method == "PUT" or (request.method == "POST" and "/commit/" in request.url.path)
        return retry(once, 1 if is_once else self._tries)


def bound_client(read_s: float, tries: int) -> None:
    """Make the library use `BoundedClient` from now on, in this process."""
    set_client_factory(lambda: BoundedClient(read_s, tries))


class _RepoId(TypedDict):
    repo_id: str
    repo_type: str


class HubTarget:
    """A folder of a repo, "owner/name" of a model or "datasets/owner/name".

    Args:
        token: None lets the client look where `hf auth login` puts it.
    """

    def __init__(self, target: TargetSettings, token: str | None) -> None:
        kind = "dataset" if target.place.startswith("datasets/") else "model"
        self._repo: _RepoId = {"repo_id": target.place.removeprefix("datasets/"), "repo_type": kind}
        self._target, self._prefix = target, target.prefix
        self._api = HfApi(endpoint=target.endpoint, token=token)

    def prepare(self, *, make: bool) -> str:
        account = self._api.whoami()
        if make:
            with contextlib.suppress(HfUriError):  # of the answer, whose address nobody needs
                self._api.create_repo(**self._repo, private=self._target.private, exist_ok=True)
        else:
            self._api.repo_info(**self._repo)
            # This call needs the right to write; nothing is stored by asking.
            question = CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=b"?")
            self._api.preupload_lfs_files(**self._repo, additions=[question], revision=_BRANCH)
        return f"{self._target.label} as {account.get('name', '?')}"

    def head(self) -> str | None:
        try:
            sha = self._api.repo_info(**self._repo, revision=_BRANCH).sha
        except RevisionNotFoundError:  # a repo without any commit has no branch yet
            return None
        return sha if sha and REGEX_COMMIT_OID.fullmatch(sha) else None

    def look(self, paths: Sequence[str] | None, revision: str | None = None) -> dict[str, Digests]:
        at = revision or _BRANCH
        try:
            if paths is None:
                return self._files(self._api.list_repo_tree(**self._repo, recursive=True, revision=at))
            found: dict[str, Digests] = {}
            for start in range(0, len(paths), _PATHS_PER_CALL):
                asked = [self._prefix + path for path in paths[start : start + _PATHS_PER_CALL]]
                found |= self._files(self._api.get_paths_info(**self._repo, paths=asked, revision=at))
            return found
        except RevisionNotFoundError:
            if revision is not None:
                raise
            return {}

    def _files(self, listed: Iterable[object]) -> dict[str, Digests]:
        found: dict[str, Digests] = {}
        for item in listed:
            if isinstance(item, RepoFile) and item.path.startswith(self._prefix):
                digest, size = (item.lfs.sha256, item.lfs.size) if item.lfs else (None, item.size)
                path = item.path.removeprefix(self._prefix)
                found[path] = Digests(size=size, sha256=digest, git_sha1=item.blob_id)
        return found

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> str:
        require_unchanged(files)  # the library takes a file that is gone for a wrong argument
        operations = [self._operation(staged) for staged in files]
        # Asked for two files of the same bytes at once, the library would send them twice.
        additions = list({operation.upload_info.sha256: operation for operation in operations}.values())
        self._api.preupload_lfs_files(
            **self._repo, additions=additions, revision=_BRANCH, gitignore_content=_IGNORE_NOTHING
        )
        for staged, operation in zip(files, operations, strict=True):
            # A commit of nothing but ignored files would hold nothing, and the library would not say so.
            if getattr(operation, "_should_ignore", False):
                raise FileError(staged.path, "ignored by the target; look at the .gitignore of the repo")
        # Over Xet a file that was written to while it was sent arrives without an error; nothing is visible yet.
        require_unchanged(files)
        info = self._api.create_commit(
            **self._repo, operations=operations, commit_message=message, revision=_BRANCH, parent_commit=parent
        )
        return str(info.oid)

    def _operation(self, staged: Staged) -> CommitOperationAdd:
        path = self._prefix + safe_path(staged.path)
        operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=staged.source)
        if operation.upload_info.size != staged.size:
            raise ChangedError(staged.path, "changed while it was uploaded")
        operation.upload_info.sha256 = bytes.fromhex(str(staged.sha256))  # spares a second reading of the whole file
        return operation

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        name = self._prefix + safe_path(path)
        return Path(self._api.hf_hub_download(**self._repo, filename=name, revision=revision, local_dir=folder))
