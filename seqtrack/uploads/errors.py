"""What a failure means: which of four actions it leads to, and what to tell a person.

Knows HTTP statuses and exceptions by their shape (`status_code`, `__cause__`), so that neither the Hub's client nor
its HTTP library is imported here; knows nothing of files or of the loop.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from seqtrack.errors import UserError
from seqtrack.uploads.target import ChangedError, FileError, IgnoredError, MismatchError

# retry: soon, with back-off. wait: as long as the server asks. person: seldom, until somebody fixes it. quarantine: if
# it is one file's, the others go without it.
Action = Literal["retry", "wait", "person", "quarantine"]
ACTIONS: dict[str, Action] = {
    "network": "retry",
    "timeout": "retry",
    "xet": "retry",
    "died": "retry",
    "changed": "retry",
    "mismatch": "retry",
    "local": "retry",
    "rate": "wait",
    "commits": "wait",
    "token": "person",
    "quota": "person",
    "repository": "person",
    "setup": "person",
    "refused": "quarantine",
}
_PASSING_STATUS = (408, 425, 520, 521, 522, 523, 524)
_NETWORK_NAMES = {"TransportError", "TimeoutException", "NetworkError", "Unreachable"}
_TIMEOUT_NAMES = {"ReadTimeout", "WriteTimeout", "ConnectTimeout", "PoolTimeout", "TimeoutException"}
_QUOTA = re.compile(r"quota|storage limit|billing|payment", re.IGNORECASE)
_FULL = re.compile(r"storage|exceeded|limit reached|your plan", re.IGNORECASE)
_COMMIT_LIMIT = re.compile(r"rate limit for repository commits", re.IGNORECASE)
_GARBLED = re.compile(r"malformed|improperly formatted|invalid server response|invalid etag", re.IGNORECASE)
_XET = re.compile(r"task error|\bcas\b|\bxet\b", re.IGNORECASE)
_UPLOADING = re.compile(r"Error while uploading '(.+)' to the Hub")
_SECRET = re.compile(r"(hf_|Bearer )[A-Za-z0-9_\-]{6,}|([?&](X-Amz-)?[Ss]ignature=)[^&\s'\"]+")


@dataclass(frozen=True)
class Fault:
    """Why an order failed.

    Attributes:
        kind: a key of ACTIONS.
        line: one sentence for a person; where a person must act, with what to do.
        status: HTTP status, where there was one.
        wait_s: seconds the target asked us to wait, 0 if it did not.
        path: the file that failed, where the target named one.
    """

    kind: str
    line: str
    status: int | None = None
    wait_s: float = 0.0
    path: str | None = None

    @property
    def action(self) -> Action:
        """What the uploader does about it."""
        return ACTIONS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """For the pipe between the processes."""
        return asdict(self)


class HubRefusal(Exception):
    """An HTTP answer that ends a call, raised by our client before the library hides it behind its own retries."""

    def __init__(self, status: int, stage: str, headers: Mapping[str, str], text: str) -> None:
        self.status, self.stage, self.headers, self.text = status, stage, dict(headers), text
        super().__init__(f"HTTP {status} at {stage}: {text[:300]}")


class Unreachable(Exception):
    """No answer: refused, reset, or a timeout."""

    def __init__(self, stage: str, reason: str, *, timed_out: bool) -> None:
        self.timed_out = timed_out
        super().__init__(f"{reason} at {stage}")


def scrub(text: str, token: str | None = None) -> str:
    """Text on one line without tokens and signatures, fit for a log."""
    if token:
        text = text.replace(token, "***")
    text = _SECRET.sub(lambda found: (found[1] or found[2] or "") + "***", text)
    return re.sub(r"\s+", " ", text).strip()[:600]


def classify(error: BaseException, *, token: str | None = None) -> Fault:
    """The fault behind an exception, looking through the wrappers the client puts round it."""
    chain = list(_causes(error))
    path = next((p for e in chain if (p := _path_in(e)) is not None), None)
    found = next((fault for link in chain if (fault := _fault_of(link, path)) is not None), None)
    if found is None:
        line = f"the target's answer is not understood: {type(error).__name__}: {error}"
        found = Fault("network", line, path=path)
    return Fault(found.kind, scrub(found.line, token), found.status, found.wait_s, found.path)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _path_in(error: BaseException) -> str | None:
    if isinstance(error, FileError):
        return error.path
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in README.md"):
        return "README.md"
    found = _UPLOADING.match(str(error))
    return found[1] if found else None


def _fault_of(error: BaseException, path: str | None) -> Fault | None:
    """The fault that one exception of a chain tells of, None if it tells of none."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = f"{type(error).__name__}: {error}"
    response = getattr(error, "response", None)
    if isinstance(error, HubRefusal):
        return _of_status(error.status, error.headers, error.text, path, storage=error.stage == "storage")
    if response is not None and isinstance(getattr(response, "status_code", None), int):
        return _of_status(response.status_code, dict(response.headers), _body(response) or str(error), path)
    if isinstance(error, ChangedError | MismatchError):
        return Fault("changed" if isinstance(error, ChangedError) else "mismatch", str(error), path=path)
    if isinstance(error, UserError | IgnoredError):
        return Fault("refused", str(error), path=path)
    if isinstance(error, ImportError):
        return Fault("setup", f"this installation lacks a package: {error}")
    if "LocalTokenNotFoundError" in names:
        return Fault("token", "there is no token: put one into a file and name it in HF_TOKEN_PATH, or set HF_TOKEN")
    if "LocalEntryNotFoundError" in names and error.__cause__ is not None:
        return None  # the library's wrapper when a question failed, whatever the reason was
    if "FileMetadataError" in names:
        return Fault("network", f"the answer is not a Hub's: {error}", path=path)
    if names & _NETWORK_NAMES:
        timed_out = bool(names & _TIMEOUT_NAMES) or getattr(error, "timed_out", False)
        return Fault("timeout" if timed_out else "network", text, path=path)
    if type(error) is ConnectionError or (type(error) is RuntimeError and _XET.search(str(error))):
        return Fault("xet", f"Xet storage: {error}", path=path)  # the library's shapes of Xet trouble
    if isinstance(error, MemoryError):
        return Fault("died", "out of memory")
    if isinstance(error, OSError) and error.errno is not None:  # without a number it is the library's own
        return Fault("local", f"{error.strerror or error} ({error.filename or 'this machine'})", path=path)
    garbled = isinstance(error, json.JSONDecodeError) or _GARBLED.search(str(error))
    if isinstance(error, ValueError) and not garbled:
        return Fault("refused", str(error), path=path)  # the library's word for a file or a name it will not send
    return None


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


def _of_status(status: int, headers: Mapping[str, str], body: str, path: str | None, *, storage: bool = False) -> Fault:
    """What an HTTP status means.

    Args:
        storage: it came from the host that takes the bytes, which knows no token: only the address it gave can be old.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    text = headers.get("x-error-message", "") or _error_in(body)
    answer = f"HTTP {status}: {text[:300]}" if text else f"HTTP {status}"

    def fault(kind: str, meaning: str, wait_s: float = 0.0) -> Fault:
        return Fault(kind, meaning.format(answer), status, wait_s, path)

    if status == 429:
        if _COMMIT_LIMIT.search(f"{text} {body}"):
            return fault("commits", "the hourly limit of commits is reached ({})", _asked_wait(headers))
        return fault("rate", "asked to slow down ({})", _asked_wait(headers))
    if status in _PASSING_STATUS or 500 <= status < 600:
        return fault("network", "the server failed ({})", _asked_wait(headers))
    if status in (409, 412):
        return fault("network", "somebody else committed first ({})")
    full = _QUOTA.search(f"{text} {body}") or (status == 403 and not storage and _FULL.search(f"{text} {body}"))
    if storage and status in (401, 403, 404, 410) and not full:
        return fault("network", "the storage refused the address it was sent to ({})")
    if headers.get("x-error-code") == "RepoNotFound":
        return fault("repository", "the repo does not exist ({}): check HF_REPO; `seqtrack hub create` makes it")
    if status == 401 or headers.get("x-error-message") == "Invalid credentials in Authorization header":
        return fault(
            "token",
            "the token was refused ({}): make a new one with write access and put it into HF_TOKEN or the "
            "file of HF_TOKEN_PATH; a file needs no restart",
        )
    if status == 402 or (status in (403, 413) and full):
        return fault("quota", "the account's storage is full or unpaid ({}): free space or pay")
    if status == 403:
        return fault("token", "the token may not write here ({}): make a token with write access to this repo")
    if status == 404 and path is not None and "repository" not in text.lower():
        return fault("mismatch", "the server does not find the file it was sent ({})")
    if status == 404:
        return fault("repository", "the repo does not exist ({}): check HF_REPO; `seqtrack hub create` makes it")
    return fault("refused", "the target refuses this file or batch ({})")


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
    # The date is by the server's own clock; ours may be wrong.
    try:
        now = parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        now = datetime.now(timezone.utc)
    return min(3600.0, max(0.0, until.timestamp() - now.timestamp()))
