"""A repo on the Hugging Face Hub as a target, through a client that gives up in time, and what its failures mean.

Imported by the child process only, since the Hub's client brings its own threads. It sends every request through one
client object, which this module makes: a status or a timeout that is worth another try reaches us soon.
"""

import contextlib
import functools
import itertools
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, errors, set_client_factory
from huggingface_hub.constants import REGEX_COMMIT_OID
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import hf_request_event_hook

from seqtrack.errors import UserError
from seqtrack.uploads.target import (
    ChangedError,
    Digests,
    Fault,
    FileError,
    Kind,
    Staged,
    TargetSettings,
    require_unchanged,
    safe_path,
    scrub,
)

T = TypeVar("T")
_COMMIT_LIMIT_WAIT_S = 900.0  # the window of an hour slides, so places come free before it is over
_GARBLED = re.compile(r"malformed|improperly formatted|invalid server response|invalid etag|Expecting", re.IGNORECASE)
_XET = re.compile(r"task error|\bcas\b|\bxet\b", re.IGNORECASE)
_XET_TOKEN = re.compile(r"/xet-(read|write)-token/[^/]+$")
_OWN_KINDS: dict[str, Kind] = {"upload.setup": "setup", "upload.other_run": "other_run", "upload.changed": "changed"}
_OWN_KINDS |= {"token.unreadable": "account", "token.malformed": "account", "upload.overlap": "overlap"}
_FILE = re.compile(r"(?:Error while uploading '|Invalid metadata in )(.+?)(?:' to the Hub|\.$|\.\n)", re.MULTILINE)
_PROXY_AUTH = "the proxy wants a user and a password in HTTP_PROXY or HTTPS_PROXY, as in http://USER:PASSWORD@host:port"
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
_PATHS_PER_CALL = 200  # the form that carries them has a limit
_BRANCH = "main"
_CONNECT_S = 10.0
# Without it the repo's own .gitignore would keep files back, and the library would leave them out silently.
_IGNORE_NOTHING = "# every file is wanted\n"
# Reading the certificates takes 0.1 s, and the library makes a new client after each failure.
_ssl_context = functools.cache(httpx2.create_ssl_context)


class HubRefusal(Exception):
    """Ends a call that the library would repeat by itself: at a status, or without an answer (see its cause)."""

    def __init__(self, response: httpx2.Response | None) -> None:
        super().__init__("no answer" if response is None else f"HTTP {response.status_code}")
        self.response = response


def retry(call: Callable[[], T], tries: int) -> T:
    """Repeat a call that is safe to repeat after trouble of the network; to wait as long as asked is for the parent."""
    for attempt in range(1, tries):
        try:
            return call()
        except Exception as error:
            fault = classify(error)
            if fault.kind != "network" or fault.wait_s:
                raise
            time.sleep(random.uniform(0.0, 0.3 * 2.0**attempt))
    return call()


def classify(error: BaseException, *, token: str | None = None, prefix: str = "") -> Fault:
    """The fault behind an exception and the client's wrappers; its path is without `prefix`, that of the repo."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = [getattr(one, "path", None) or (_FILE.match(str(one)) or [None, None])[1] for one in chain]
    path = next((str(name).removeprefix(prefix) for name in names if name), None)
    kind: Kind
    kind, line, wait_s = "network", f"not understood: {type(error).__name__}: {error}", 0.0
    untrusted = [str(one) for one in chain if isinstance(one, ssl.SSLCertVerificationError) or _UNTRUSTED in str(one)]
    if untrusted:
        kind, line = "setup", f"a certificate is not trusted; name the authority's in SSL_CERT_FILE ({untrusted[0]})"
    for one in () if untrusted else chain:
        if (found := _kind_of(one, path)) is not None:
            kind, line, wait_s = found
            break
    return Fault(kind=kind, line=scrub(line, token), wait_s=wait_s, path=path)


def _kind_of(error: BaseException, path: str | None) -> tuple[Kind, str, float] | None:
    """(kind, line, seconds to wait) of one exception of a chain, None if another of the chain tells more."""
    text, name = str(error), type(error).__name__
    if isinstance(error, HubRefusal | errors.HfHubHTTPError) and error.response is not None:
        return _of_status(error.response, path)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "account", "there is no token: name a file with one in HF_TOKEN_PATH, or set HF_TOKEN", 0.0
    if isinstance(error, httpx2.ProxyError) and text.startswith("407"):  # its answer to CONNECT
        return "setup", f"{_PROXY_AUTH} ({text})", 0.0
    if isinstance(error, httpx2.TransportError):  # whatever the operating system's error below it is
        return "timeout" if isinstance(error, httpx2.TimeoutException) else "network", f"{name}: {text}", 0.0
    if type(error) is ConnectionError or (type(error) is RuntimeError and _XET.search(text)):
        return "xet", f"Xet storage: {text}", 0.0
    is_local = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
    if is_local or isinstance(error, ImportError | errors.OfflineModeIsEnabled):
        return "setup", f"this machine cannot reach the target: {text}", 0.0
    if isinstance(error, FileError | UserError):
        return _OWN_KINDS.get(getattr(error, "code", ""), "refused"), text, 0.0
    if isinstance(error, ValueError) and not _GARBLED.search(text):
        return "refused", text, 0.0  # the library's word for a file or a name it will not send
    return None


def _of_status(response: httpx2.Response, path: str | None) -> tuple[Kind, str, float]:
    """What an HTTP answer means. The host that takes the bytes knows no token: only the address it gave can be old."""
    status, headers = response.status_code, response.headers
    body = ""
    with contextlib.suppress(httpx2.StreamError):  # an answer whose body was not read
        body = response.text[:2000]
    is_storage = response.request.method == "PUT"
    said = f"HTTP {status} at {response.request.url.path}: {headers.get('x-error-message', '')} {body[:300]}"
    wait_s = _asked_wait(headers)
    if _XET_TOKEN.search(response.request.url.path):
        return "xet", f"no access to Xet storage ({said})", 0.0
    if status == 407:
        return "setup", f"{_PROXY_AUTH} ({said})", 0.0
    if status == 429:
        is_hourly = "rate limit for repository commits" in said
        return "rate", f"asked to slow down ({said})", max(wait_s, _COMMIT_LIMIT_WAIT_S * is_hourly)
    if is_storage and status in (401, 403, 404, 410):
        return "network", f"the storage refused the address it was sent to ({said})", 0.0
    code = headers.get("x-error-code")
    if code == "RepoNotFound" or (status == 404 and path is None and code != "EntryNotFound"):
        return "repository", f"the repo does not exist: check HF_REPO; `seqtrack hub create` makes it ({said})", 0.0
    if status in (401, 402, 403):
        advice = "HF_TOKEN or the file of HF_TOKEN_PATH needs a token with write access (no restart), the storage room"
        return "account", f"the account may not write here: {advice} ({said})", 0.0
    if status == 404:
        return "changed", f"the server does not find the file it was sent ({said})", 0.0
    if status in (408, 409, 412, 425) or status >= 500:
        return "network", f"the server failed, or somebody else committed first ({said})", wait_s
    return "refused", f"the target refuses this file or batch ({said})", 0.0


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that Retry-After (number or HTTP date) or an exhausted RateLimit asks for; at most an hour."""
    for limit in headers.get("ratelimit", "").split(","):
        values = dict(re.findall(r";\s*([rt])\s*=\s*(\d+)", limit))
        if values.get("r") == "0" and "t" in values:
            return min(3600.0, float(values["t"]) + 1.0)
    value = headers.get("retry-after", "").strip()
    try:
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return min(3600.0, float(value))
        # By the server's own clock; ours may be wrong.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(timezone.utc)
        return min(3600.0, max(0.0, parsedate_to_datetime(value).timestamp() - now.timestamp()))
    except (TypeError, ValueError):
        return 0.0


class BoundedClient(httpx2.Client):
    """A client with timeouts that raises what must end a call; a UserError for a variable that cannot be followed."""

    num_stored = 0  # objects that the storage took from this process

    def __init__(self, read_s: float, tries: int) -> None:
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            if os.environ.get(name) and not Path(os.environ[name]).exists():
                raise UserError(f"{name} (or REQUESTS_CA_BUNDLE): no file {os.environ[name]}", code="upload.setup")
        try:
            timeout = httpx2.Timeout(read_s, connect=_CONNECT_S)
            hooks = {"request": [hf_request_event_hook]}  # the library's: it obeys HF_HUB_OFFLINE
            super().__init__(verify=_ssl_context(), timeout=timeout, follow_redirects=True, event_hooks=hooks)
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise UserError(f"HTTPS_PROXY, SSL_CERT_FILE or similar: {error}", code="upload.setup") from error
        self._read_s, self._tries = read_s, tries

    def send(self, request: httpx2.Request, **kwargs: object) -> httpx2.Response:
        """Send, and repeat what is safe to repeat; then a HubRefusal: no answer, or a status that may pass."""
        # The library passes timeout=None here and there, which would undo the bound.
        request.extensions["timeout"] = self.timeout.as_dict()
        if is_xet := bool(_XET_TOKEN.search(request.url.path)):  # without Xet there is plain HTTP
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
            BoundedClient.num_stored += request.method == "PUT" and not is_part and response.is_success
            return response

        # A commit may have been made, and an object stored, though the reply was lost: the caller asks first.
        is_once = is_xet or request.method == "PUT" or (request.method == "POST" and "/commit/" in request.url.path)
        return retry(once, 1 if is_once else self._tries)


def bound_client(read_s: float, tries: int) -> None:
    """Make the library use `BoundedClient` from now on, in this process."""
    BoundedClient.num_stored = 0
    set_client_factory(lambda: BoundedClient(read_s, tries))


class HubTarget:
    """A folder of a repo, "owner/name" or "datasets/owner/name". Without a token that of `hf auth login` is used."""

    def __init__(self, target: TargetSettings, token: str | None) -> None:
        kind = "dataset" if target.place.startswith("datasets/") else "model"
        self._repo: Any = {"repo_id": target.place.removeprefix("datasets/"), "repo_type": kind}
        self._target, self._prefix = target, target.prefix
        self._api = HfApi(endpoint=target.endpoint, token=token)

    def prepare(self, *, make: bool) -> str:
        account = self._api.whoami()
        if make:
            with contextlib.suppress(errors.HfUriError):  # of the answer, whose address nobody needs
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
        except errors.RevisionNotFoundError:  # a repo without any commit has no branch yet
            return None
        return sha if sha and REGEX_COMMIT_OID.fullmatch(sha) else None

    def look(self, paths: Sequence[str] | None, revision: str | None = None) -> dict[str, Digests]:
        at: Any = {**self._repo, "revision": revision or _BRANCH}
        asked = [self._prefix + path for path in paths or ()]
        found: dict[str, Digests] = {}
        try:
            parts = [asked[start : start + _PATHS_PER_CALL] for start in range(0, len(asked), _PATHS_PER_CALL)]
            every = self._api.list_repo_tree(**at, recursive=True) if paths is None else ()
            for item in itertools.chain(every, *(self._api.get_paths_info(**at, paths=part) for part in parts)):
                if isinstance(item, RepoFile) and item.path.startswith(self._prefix):
                    digest, size = (item.lfs.sha256, item.lfs.size) if item.lfs else (None, item.size)
                    path = item.path.removeprefix(self._prefix)
                    found[path] = Digests(size=size, sha256=digest, git_sha1=item.blob_id)
        except errors.RevisionNotFoundError:
            if revision is not None:
                raise
        return found

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> str:
        require_unchanged(files)  # the library takes a file that is gone for a wrong argument
        operations = [self._operation(staged) for staged in files]
        # Asked for two files of the same bytes at once, the library would send them twice.
        additions = list({operation.upload_info.sha256: operation for operation in operations}.values())
        at: Any = {**self._repo, "revision": _BRANCH}
        self._api.preupload_lfs_files(**at, additions=additions, gitignore_content=_IGNORE_NOTHING)
        for staged, operation in zip(files, operations, strict=True):
            # A commit of nothing but ignored files would hold nothing, and the library would not say so.
            if getattr(operation, "_should_ignore", False):
                raise FileError(staged.path, "ignored by the target; look at the .gitignore of the repo")
        # Over Xet a file that was written to while it was sent arrives without an error; nothing is visible yet.
        require_unchanged(files)
        at |= {"parent_commit": parent, "commit_message": message}
        with contextlib.suppress(errors.HfUriError):  # of the answer, as above; the commit was made
            return str(self._api.create_commit(**at, operations=operations).oid)
        return str(self.head())

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
