"""What a failure means: which kind it is, and so which of four actions it leads to.

Imported where the Hub's client is: in the process that speaks to a target. Knows nothing of files or of the loop.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from seqtrack.errors import UserError
from seqtrack.uploads.target import Fault, FileError, Kind, scrub

T = TypeVar("T")
_COMMIT_LIMIT_WAIT_S = 900.0  # the window of an hour slides, so places come free before it is over
_GARBLED = re.compile(r"malformed|improperly formatted|invalid server response|invalid etag|Expecting", re.IGNORECASE)
_XET = re.compile(r"task error|\bcas\b|\bxet\b", re.IGNORECASE)
_OWN_KINDS: dict[str, Kind] = {"upload.setup": "setup", "upload.other_run": "other_run", "upload.changed": "changed"}
_UPLOADING = re.compile(r"Error while uploading '(.+)' to the Hub")


class HubRefusal(Exception):
    """Ends a call that the library would repeat by itself: at a status, or without an answer (see its cause)."""

    def __init__(self, response: httpx2.Response | None) -> None:
        super().__init__("no answer" if response is None else f"HTTP {response.status_code}")
        self.response = response


def retry(call: Callable[[], T], tries: int) -> T:
    """Repeat a call that is safe to repeat while it meets trouble that passes by itself.

    To wait as long as asked is for the parent, and after a timeout the next try must have more time.
    """
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
    """The fault behind an exception, looking through the wrappers the client puts round it.

    Args:
        prefix: of every path in the repo; a fault's path is without it.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    path = next((name.removeprefix(prefix) for one in chain if (name := _path_in(one))), None)
    kind: Kind
    kind, line, wait_s = "network", f"not understood: {type(error).__name__}: {error}", 0.0
    for one in chain:
        if (found := _kind_of(one, path)) is not None:
            kind, line, wait_s = found
            break
    return Fault(kind=kind, line=scrub(line, token), wait_s=wait_s, path=path)


def _path_in(error: BaseException) -> str | None:
    if isinstance(error, FileError):
        return error.path
    if str(error).startswith("Invalid metadata in README.md"):
        return "README.md"
    found = _UPLOADING.match(str(error))
    return found[1] if found else None


def _kind_of(error: BaseException, path: str | None) -> tuple[Kind, str, float] | None:
    """(kind, line, seconds to wait) of one exception of a chain, None if another of the chain tells more."""
    text, name = str(error), type(error).__name__
    if isinstance(error, HubRefusal | HfHubHTTPError) and error.response is not None:
        return _of_status(error.response, path)
    if isinstance(error, LocalTokenNotFoundError):
        return "account", "there is no token: name a file with one in HF_TOKEN_PATH, or set HF_TOKEN", 0.0
    if isinstance(error, httpx2.TransportError):  # whatever the operating system's error below it is
        return "timeout" if isinstance(error, httpx2.TimeoutException) else "network", f"{name}: {text}", 0.0
    if type(error) is ConnectionError or (type(error) is RuntimeError and _XET.search(text)):
        return "xet", f"Xet storage: {text}", 0.0
    is_local = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)
    if is_local or isinstance(error, ImportError | OfflineModeIsEnabled):
        return "setup", f"this machine cannot reach the target: {text}", 0.0
    if isinstance(error, FileError | UserError):
        return _OWN_KINDS.get(getattr(error, "code", ""), "refused"), text, 0.0
    if isinstance(error, ValueError) and not _GARBLED.search(text):
        return "refused", text, 0.0  # the library's word for a file or a name it will not send
    return None


def _of_status(response: httpx2.Response, path: str | None) -> tuple[Kind, str, float]:
    """What an HTTP answer means. The host that takes the bytes knows no token: only the address it gave can be old."""
    status, headers = response.status_code, response.headers
    try:
        body = response.text[:2000]
    except httpx2.StreamError:  # an answer whose body was not read
        body = ""
    is_storage = response.request.method == "PUT"
    said = f"HTTP {status} at {response.request.url.path}: {headers.get('x-error-message', '')} {body[:300]}"
    wait_s = _asked_wait(headers)
    if "-token/" in response.request.url.path:
        return "xet", f"no access to Xet storage ({said})", 0.0
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
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(3600.0, float(value))
    try:
        until = parsedate_to_datetime(value)
        # By the server's own clock; ours may be wrong.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(timezone.utc)
    except (TypeError, ValueError):
        return 0.0
    return min(3600.0, max(0.0, until.timestamp() - now.timestamp()))
