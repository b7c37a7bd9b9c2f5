"""How the Hub's client is made safe: timeouts it does not have, and refusals it would hide.

Imported by the child process only. The library sends every request through one client object, which this module
makes. A status or a silence that is worth another try reaches us at once, with its headers, instead of after six
tries without jitter; the library may repeat a single request `tries` times, because a part of a large file that
failed once should not cost the whole file.
"""

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import set_client_factory

from seqtrack.uploads.errors import HubRefusal, Unreachable

_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
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


class BoundedClient(httpx2.Client):
    """A client that gives up in time, and says why."""

    def __init__(self, limits: Limits) -> None:
        timeout = httpx2.Timeout(limits.read_s, connect=limits.connect_s)
        super().__init__(timeout=timeout, follow_redirects=True)
        self._limits = limits
        self._failures: Counter[tuple[str, str]] = Counter()
        self._guard = threading.Lock()

    def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        """Send once; raise what must end the call rather than be repeated by the library."""
        # The library passes timeout=None here and there, which would undo the bound.
        request.extensions["timeout"] = self.timeout.as_dict()
        stage = stage_of(request.method, request.url.path)
        try:
            response = super().send(request, **kwargs)
        except httpx2.TransportError as error:
            timed_out = isinstance(error, httpx2.TimeoutException)
            # Silence is not repeated here: the next try must be more patient, which only the parent can arrange.
            if timed_out or self._used_up(request):
                reason = f"no answer for {self._limits.read_s:g} s" if timed_out else str(error) or type(error).__name__
                raise Unreachable(stage, reason, timed_out=timed_out) from error
            raise
        if response.status_code in _RETRYABLE and (response.status_code == 429 or self._used_up(request)):
            text = response.read().decode(errors="replace")[:2000]
            response.close()
            raise HubRefusal(response.status_code, stage, dict(response.headers), text)
        return response

    def _used_up(self, request: httpx2.Request) -> bool:
        key = (request.method, str(request.url))
        with self._guard:
            self._failures[key] += 1
            return self._failures[key] >= self._limits.tries


def bound_client(limits: Limits) -> None:
    """Make the library use `BoundedClient` from now on, in this process."""
    set_client_factory(lambda: BoundedClient(limits))
