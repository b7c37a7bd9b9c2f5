"""How the Hub's client is made safe: timeouts it does not have, and refusals it would hide.

Imported by the child process only. The library sends every request through one client object, which this module
makes. A status or a silence that is worth another try reaches us soon, with its headers, instead of after six tries
without jitter; a single request is repeated `tries` times, because a part of a large file that failed once should not
cost the whole file.
"""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2
from huggingface_hub import set_client_factory

from seqtrack.uploads.errors import HubRefusal, Unreachable

_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
_REFUSED_ADDRESS = (401, 403, 404, 410)
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
    ("/api/models/", "repo"),
)


@dataclass(frozen=True)
class Limits:
    """Bounds of every request, in seconds; `tries` is how often the library may send one request."""

    connect_s: float = 10.0
    read_s: float = 45.0
    tries: int = 3


def stage_of(method: str, path: str) -> str:
    """Which step of the protocol a request belongs to, for a log line."""
    if method == "PUT":
        return "storage"
    return next((name for part, name in _STAGES if part in path), "storage")


@dataclass
class Traffic:
    """What went through the clients of this process; `stored` counts PUTs that arrived."""

    stored: int = 0
    failed_parts: Counter[str] = field(default_factory=Counter)
    parts: set[str] = field(default_factory=set)
    guard: threading.Lock = field(default_factory=threading.Lock)


class BoundedClient(httpx2.Client):
    """A client that gives up in time, and says why."""

    def __init__(self, limits: Limits, traffic: Traffic) -> None:
        timeout = httpx2.Timeout(limits.read_s, connect=limits.connect_s)
        super().__init__(timeout=timeout, follow_redirects=True)
        self._limits, self._traffic = limits, traffic

    def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        """Send, and repeat what is safe to repeat; raise what must end the call.

        Raises:
            HubRefusal: a status that another try may cure, after the last try; at once for one that asks to wait,
                which is the parent's affair, and for a storage address that is refused.
            Unreachable: no answer. Silence is not repeated here: the next try must be more patient.
        """
        # The library passes timeout=None here and there, which would undo the bound.
        request.extensions["timeout"] = self.timeout.as_dict()
        stage = stage_of(request.method, request.url.path)
        # A commit may have been made, and an object stored, though the reply was lost: who sends them asks first.
        tries = 1 if stage == "commit" or request.method == "PUT" else self._limits.tries
        for attempt in range(1, tries + 1):
            last = attempt == tries
            try:
                response = super().send(request, **kwargs)
            except httpx2.TransportError as error:
                timed_out = isinstance(error, httpx2.TimeoutException)
                if not timed_out and self._library_may_repeat(request):
                    raise
                if timed_out or last:
                    reason = f"no answer for {self._limits.read_s:g} s" if timed_out else str(error) or "cut off"
                    raise Unreachable(stage, reason, timed_out=timed_out) from error
            else:
                status = response.status_code
                # An address to store at is good for some minutes; only the Hub can give a new one.
                expired = request.method == "PUT" and status in _REFUSED_ADDRESS
                if not expired and (status not in _RETRYABLE or (status != 429 and self._library_may_repeat(request))):
                    self._note(request, response, stage)
                    return response
                if expired or last or status == 429 or "retry-after" in response.headers:
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
        if request.method == "PUT" and response.is_success:
            with self._traffic.guard:
                self._traffic.stored += 1
        if (
            stage == "batch"
            and response.is_success
            and (b'"chunk_size"' in response.content or b'"error"' in response.content)
        ):
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
        with self._traffic.guard:
            self._traffic.failed_parts[url] += 1
            return self._traffic.failed_parts[url] < self._limits.tries


def bound_client(limits: Limits) -> Traffic:
    """Make the library use `BoundedClient` from now on, in this process."""
    traffic = Traffic()
    set_client_factory(lambda: BoundedClient(limits, traffic))
    return traffic
