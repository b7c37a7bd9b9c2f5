"""What a failure means: whether to try again, when, and what to tell a person.

Knows HTTP statuses and exceptions by their shape (`status_code`, `__cause__`), so that neither the Hub's client nor
its HTTP library is imported here; knows nothing of files or of the loop.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from seqtrack.errors import UserError
from seqtrack.uploads.target import ChangedError

TRANSIENT = ("network", "server", "rate", "deadline", "died", "xet", "conflict", "changed", "mismatch", "local")
PERMANENT = ("token", "permission", "repository", "quota", "refused")
WAITS = ("commits",)
_TRANSIENT_STATUS = (408, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524)
_NETWORK_NAMES = ("TransportError", "TimeoutException", "NetworkError", "Unreachable")
_TIMEOUT_NAMES = ("ReadTimeout", "WriteTimeout", "ConnectTimeout", "PoolTimeout", "TimeoutException")
_QUOTA = re.compile(r"quota|storage limit|billing|payment", re.IGNORECASE)
_FULL = re.compile(r"storage|exceeded|limit reached|your plan", re.IGNORECASE)
_GARBLED = re.compile(r"malformed|improperly formatted|invalid server response|invalid etag", re.IGNORECASE)
_SECRET = re.compile(r"(hf_|Bearer )[A-Za-z0-9_\-]{6,}|([?&](X-Amz-)?[Ss]ignature=)[^&\s'\"]+")


@dataclass(frozen=True)
class Fault:
    """Why a batch did not arrive.

    Attributes:
        kind: one of TRANSIENT, PERMANENT or WAITS.
        line: one sentence for a person; for a permanent fault it says what to do.
        status: HTTP status, where there was one.
        wait_s: seconds the target asked us to wait, 0 if it did not.
        path: the file that failed alone, where the target said so.
    """

    kind: str
    line: str
    status: int | None = None
    wait_s: float = 0.0
    path: str | None = None

    @property
    def permanent(self) -> bool:
        return self.kind in PERMANENT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class HubRefusal(Exception):
    """An HTTP answer that ends a call, raised by our client before the library hides it behind its own retries."""

    def __init__(self, status: int, stage: str, headers: Mapping[str, str], text: str) -> None:
        self.status, self.stage, self.headers, self.text = status, stage, dict(headers), text
        super().__init__(f"HTTP {status} at {stage}: {text[:300]}")


class Unreachable(Exception):
    """No answer: refused, reset, or silence past the limit."""

    def __init__(self, stage: str, reason: str, *, timed_out: bool) -> None:
        self.stage, self.timed_out = stage, timed_out
        super().__init__(f"{reason} at {stage}")


class MismatchError(Exception):
    """The target lists other bytes than those that were sent."""

    def __init__(self, path: str, found: str) -> None:
        self.path = path
        super().__init__(f"{path}: the target lists {found}, which is not what was sent")


class IgnoredError(Exception):
    """The target says that a file is to be left out of the repo."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path}: the target wants it ignored; look at the .gitignore of the repo")


def scrub(text: str, token: str | None = None) -> str:
    """Text without tokens and signatures, fit for a log."""
    if token:
        text = text.replace(token, "***")
    return _SECRET.sub(lambda found: (found[1] or found[2] or "") + "***", text)


def classify(error: BaseException, *, token: str | None = None) -> Fault:
    """Name the reason of a failure, looking through the wrappers the client puts round it."""
    chain = list(_causes(error))
    path = next((p for e in chain if (p := _path_in(e)) is not None), None)
    for link in chain:
        found = _fault_of(link, path)
        if found is not None:
            return Fault(found.kind, _one_line(scrub(found.line, token)), found.status, found.wait_s, found.path)
    line = scrub(f"{type(error).__name__}: {error}", token)
    return Fault("server", _one_line(f"the target answered in a way that is not understood: {line}"), path=path)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _path_in(error: BaseException) -> str | None:
    if isinstance(error, (ChangedError, MismatchError, IgnoredError)):
        return error.path
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in README.md"):
        return "README.md"
    found = re.match(r"Error while uploading '(.+)' to the Hub", str(error))
    return found[1] if found else None


def _fault_of(error: BaseException, path: str | None) -> Fault | None:
    if isinstance(error, HubRefusal):
        if error.stage == "storage":
            return _of_storage(error, path)
        return _of_status(error.status, error.headers, error.text, path)
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(status, int) and response is not None:
        return _of_status(status, dict(response.headers), _body(response) or str(error), path)
    if isinstance(error, ChangedError):
        return Fault("changed", str(error), path=error.path)
    if isinstance(error, MismatchError):
        return Fault("mismatch", str(error), path=error.path)
    if isinstance(error, (UserError, IgnoredError)):
        return Fault("refused", str(error), path=path)
    names = {kind.__name__ for kind in type(error).__mro__}
    if "LocalTokenNotFoundError" in names:
        return Fault("token", "there is no token: put one into a file and name it in HF_TOKEN_PATH, or set HF_TOKEN")
    if "LocalEntryNotFoundError" in names and error.__cause__ is not None:
        return None  # what the library says when a question failed, whatever the reason was
    if "FileMetadataError" in names:
        return Fault("server", f"the answer is not a Hub's: {error}", path=path)
    if isinstance(error, Unreachable):
        return Fault("deadline" if error.timed_out else "network", str(error), path=path)
    if names & set(_NETWORK_NAMES):
        timed_out = bool(names & set(_TIMEOUT_NAMES))
        return Fault("deadline" if timed_out else "network", f"{type(error).__name__}: {error}", path=path)
    if isinstance(error, ConnectionError) and type(error) is ConnectionError:
        return Fault("xet", f"Xet storage: {error}", path=path)  # the library's own shape for all Xet trouble
    if isinstance(error, MemoryError):
        return Fault("died", "out of memory")
    if isinstance(error, OSError):
        return Fault("local", f"{error.strerror or error} ({error.filename or 'this machine'})", path=path)
    if (
        isinstance(error, ValueError)
        and not isinstance(error, json.JSONDecodeError)
        and not _GARBLED.search(str(error))
    ):
        return Fault("refused", str(error), path=path)  # the library's own word for a file or a name it will not send
    return None


def _of_storage(error: HubRefusal, path: str | None) -> Fault | None:
    """A refusal by the host that takes the bytes, which knows no token: only the address it gave can be too old."""
    if error.status in (401, 403, 404, 410) and not _QUOTA.search(error.text):
        said = f"HTTP {error.status}: {_error_in(error.text)[:300]}"
        return Fault("server", f"the storage refused the address it was sent to ({said})", error.status, path=path)
    return _of_status(error.status, error.headers, error.text, path)


def _body(response: Any) -> str:
    try:
        return str(response.text)[:2000]
    except RuntimeError:  # a streamed answer whose body was not read
        return ""


def _error_in(text: str) -> str:
    """The "error" of a JSON answer, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return str(value["error"]) if isinstance(value, dict) and "error" in value else text


def _of_status(status: int, headers: Mapping[str, str], text: str, path: str | None) -> Fault:
    headers = {name.lower(): value for name, value in headers.items()}
    body, text = text, headers.get("x-error-message", "") or _error_in(text)
    said = f"HTTP {status}: {text[:300]}" if text else f"HTTP {status}"
    if status == 429:
        wait = _asked_wait(headers)
        if re.search(r"rate limit for repository commits", f"{text} {body}", re.IGNORECASE):
            return Fault("commits", f"the hourly limit of commits is reached ({said})", status, wait, path)
        return Fault("rate", f"asked to slow down ({said})", status, wait, path)
    if status in _TRANSIENT_STATUS:
        return Fault("server", f"the server failed ({said})", status, _asked_wait(headers), path)
    if status in (409, 412):
        return Fault("conflict", f"somebody else committed first ({said})", status, 0.0, path)
    if headers.get("x-error-code") == "RepoNotFound":
        return _no_repo(said, status, path)
    if status == 401 or headers.get("x-error-message") == "Invalid credentials in Authorization header":
        todo = "make a new one with write access and put it where HF_TOKEN_PATH or HF_TOKEN says; no restart is needed"
        return Fault("token", f"the token was refused ({said}): {todo} if it is a file", status, 0.0, path)
    full = _QUOTA.search(f"{text} {body}") or (status == 403 and _FULL.search(f"{text} {body}"))
    if status == 402 or (status in (403, 413) and full):
        return Fault("quota", f"the account's storage is full or unpaid ({said}): free space or pay", status, 0.0, path)
    if status == 403:
        todo = "make a token with write access to this repo"
        return Fault("permission", f"the token may not write here ({said}): {todo}", status, 0.0, path)
    if status == 404 and path is not None and "repository" not in text.lower():
        return Fault("mismatch", f"the server does not find the file it was sent ({said})", status, 0.0, path)
    if status == 404:
        return _no_repo(said, status, path)
    if 500 <= status < 600:
        return Fault("server", f"the server failed ({said})", status, _asked_wait(headers), path)
    return Fault("refused", f"the target refuses this file or batch ({said})", status, 0.0, path)


def _no_repo(said: str, status: int, path: str | None) -> Fault:
    todo = "check HF_REPO; `seqtrack hub create` makes it"
    return Fault("repository", f"the repo is not there ({said}): {todo}", status, 0.0, path)


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that Retry-After (number or HTTP date) or an exhausted RateLimit asks for; at most an hour."""
    for limit in headers.get("ratelimit", "").split(","):
        values = dict(re.findall(r";\s*([rt])\s*=\s*(\d+)", limit))
        if values.get("r") == "0" and "t" in values:
            return min(3600.0, float(values["t"]) + 1.0)
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(3600.0, float(value))
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    # The server's own clock is the one its date is written by; ours may be wrong.
    try:
        now = parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        now = datetime.now(timezone.utc)
    return min(3600.0, max(0.0, until.timestamp() - now.timestamp()))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:600]
