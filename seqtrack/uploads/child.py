"""The process that speaks to a target: reads one call from stdin, carries it out, writes one reply to stdout.

One process per order, so that a hang, a crash or a leak of the client costs one batch and can be ended from outside. It
ends itself when its parent is gone, so that no orphan commits after a new parent has begun.
"""

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import huggingface_hub.utils
from huggingface_hub.utils import _xet_progress_reporting

from seqtrack.config.environment import read_token
from seqtrack.uploads.folder import FolderTarget
from seqtrack.uploads.hub import BoundedClient, HubTarget, bound_client, classify, retry
from seqtrack.uploads.identity import markers_to_put
from seqtrack.uploads.target import Call, ChangedError, Fault, Order, Reply, Target, missing

_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk may be full


def perform(call: Call) -> Reply:
    """Carry out one order; every failure becomes a fault."""
    reply, at, is_folder = Reply(), call.target, call.target.kind == "folder"
    token: str | None = None
    try:
        bound_client(call.settings.read_timeout_s, call.settings.request_tries)
        token = None if is_folder else read_token(os.environ)
        target = FolderTarget(Path(at.place), at.prefix, at.output_dir) if is_folder else HubTarget(at, token)
        _carry_out(target, call.order, call.settings.request_tries, reply)
    except Exception as error:  # noqa: BLE001  whatever a client raises must reach the parent as one classified line
        reply.fault = classify(error, token=token, prefix=at.prefix)
    reply.num_stored = BoundedClient.num_stored
    return reply


def _carry_out(target: Target, order: Order, tries: int, reply: Reply) -> None:
    if order.prepare is not None:
        reply.account = target.prepare(make=order.prepare == "make")
    if order.look:
        reply.revision = order.revision or target.head()
        reply.remotes = target.look(None if order.look == "all" else order.look, reply.revision)
    if order.files:
        paths = [item.path for item in order.files]

        def put_missing() -> str | None:
            # The head first: what is committed after it was read makes our commit fail rather than come twice.
            head = target.head()
            with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
                lacking = missing(order.files, target.look(paths))
                markers = markers_to_put(target, order.markers, lacking, Path(folder))
                return target.put([*markers, *lacking], order.message, head) if lacking else None

        reply.commit = retry(put_missing, tries)
        wrong = [item.path for item in missing(order.files, target.look(paths))]
        reply.verified = [path for path in paths if path not in wrong]
        if wrong:
            raise ChangedError(wrong[0], "the target lists other bytes than were uploaded")
    for path in order.fetch:
        download = partial(target.fetch, path, order.revision, Path(order.folder))
        reply.places[path] = str(retry(download, tries))


class _Progress:
    """In place of the library's progress bars for Xet, which can wait indefinitely: when bytes last moved."""

    moved_at = float("inf")  # monotonic; no transfer is running

    def __init__(self, **_: object) -> None:
        self._seen: tuple[int, int] | None = None
        _Progress.moved_at = time.monotonic()

    def update_progress(self, report: object, _: object = None) -> None:
        """Called several times per second; a call is no progress."""
        seen = (getattr(report, "total_bytes_completed", 0), getattr(report, "total_transfer_bytes_completed", 0))
        if seen != self._seen:
            self._seen, _Progress.moved_at = seen, time.monotonic()

    def close(self, *_: object) -> None:
        _Progress.moved_at = float("inf")

    def __enter__(self) -> "_Progress":
        return self

    __exit__ = close


def _watch(call: Call, answer: Callable[[Reply], NoReturn]) -> None:
    while os.getppid() == call.parent:
        if (idle_s := time.monotonic() - _Progress.moved_at) > call.settings.xet_stall_s:
            answer(Reply(fault=Fault(kind="xet", line=f"Xet storage: nothing moved for {idle_s:.0f} s")))
        time.sleep(0.2)
    os._exit(1)


def main() -> None:
    """Entry of the process. Stdout carries the reply only."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    out, once = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # whatever a library prints must not look like a reply

    def answer(reply: Reply) -> NoReturn:
        once.acquire()  # and never release: there is one answer
        out.write(reply.model_dump_json().encode())
        out.flush()
        # The library's worker threads may still wait on a stalled connection; nothing is left to be done for them.
        os._exit(0)

    call = Call.model_validate_json(sys.stdin.buffer.read())
    for name in ("XetUploadProgressReporter", "XetDownloadProgressReporter"):
        setattr(_xet_progress_reporting, name, _Progress)
    vars(huggingface_hub.utils)["are_progress_bars_disabled"] = lambda *_: False  # asked before an upload reports
    threading.Thread(target=_watch, args=(call, answer), daemon=True).start()
    os.nice(call.nice)
    answer(perform(call))


if __name__ == "__main__":
    main()
