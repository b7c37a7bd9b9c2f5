"""The process that speaks to a target: reads one order from stdin, tells events on stdout, ends.

One order a process, so that a hang, a crash or a leak of the client costs one batch and can be ended from outside. It
watches stdin: when the parent dies, the pipe closes and this process goes at once, so that no orphan commits after a
new parent has begun.

An order: {"operation": "prepare"|"push"|"fetch"|"list"|"look", "target": {...}, ...}. Events, one JSON object a line:
{"event": "already"|"committed"|"verified", ...}, and last {"event": "done", ...} or {"event": "fault", ...}.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqtrack.config.environment import read_token
from seqtrack.errors import UserError
from seqtrack.uploads.errors import Fault, MismatchError, classify
from seqtrack.uploads.target import Remote, Staged, Target
from seqtrack.uploads.targets import open_target

Emit = Callable[[dict[str, Any]], None]


def perform(order: dict[str, Any], emit: Emit) -> None:
    """Carry out one order; every failure becomes a "fault" event."""
    token: str | None = None
    try:
        if order["target"]["kind"] == "huggingface":
            try:
                token = read_token(os.environ)
            except UserError as error:
                emit({"event": "fault", **Fault("token", str(error)).to_json()})
                return
        target = open_target({**order["target"], "token": token})
        _OPERATIONS[order["operation"]](target, order, emit)
    except Exception as error:  # noqa: BLE001  whatever a client raises must reach the parent as one classified line
        emit({"event": "fault", **classify(error, token=token).to_json()})


def _prepare(target: Target, order: dict[str, Any], emit: Emit) -> None:
    emit({"event": "done", **asdict(target.prepare(make=bool(order.get("make", True))))})


def _push(target: Target, order: dict[str, Any], emit: Emit) -> None:
    """Send what the target does not hold yet in one commit, and tell of each file only what the target lists."""
    files = [Staged(**{**item, "stamp": tuple(item["stamp"])}) for item in order["files"]]
    commit: str | None = None
    tries = int(order.get("tries", 3))
    for attempt in range(1, tries + 1):
        # The head first: what is committed after it was read makes our commit fail rather than come twice.
        head = target.head()
        missing = _missing(files, _look_at(target, files))
        if attempt == 1:
            emit({"event": "already", "paths": [item.path for item in files if item not in missing]})
        if not missing:
            break
        try:
            receipt = target.put(missing, order["message"], head)
            commit = receipt.commit
            emit({"event": "committed", "commit": commit, "paths": list(receipt.paths)})
            left = {item.path for item in missing} - set(receipt.paths)
            files = [item for item in files if item.path not in left]
            break
        except Exception as error:
            # A reply can be lost after the commit was made, and somebody else can commit between: look again.
            if attempt == tries or not _worth_another(classify(error)):
                raise
            time.sleep(0.2 * attempt)
    remotes = _look_at(target, files)
    wrong = {item.path for item in _missing(files, remotes)}
    emit({"event": "verified", "commit": commit, "paths": [item.path for item in files if item.path not in wrong]})
    if wrong:
        path = sorted(wrong)[0]
        raise MismatchError(path, _shown(remotes.get(path)))
    emit({"event": "done", "commit": commit})


def _look_at(target: Target, files: Sequence[Staged]) -> dict[str, Remote]:
    return target.look([item.path for item in files])


def _worth_another(fault: Fault) -> bool:
    if fault.wait_s > 0.0:
        return False  # to wait as long as asked is the parent's affair
    return fault.kind == "conflict" or (fault.kind in ("server", "network") and fault.path is None)


def _missing(files: Sequence[Staged], remotes: dict[str, Remote]) -> list[Staged]:
    return [item for item in files if item.path not in remotes or not remotes[item.path].holds(item)]


def _shown(remote: Remote | None) -> str:
    return "nothing" if remote is None else f"{remote.size} bytes with {remote.sha256 or remote.git_sha1}"


def _look(target: Target, order: dict[str, Any], emit: Emit) -> None:
    revision = order.get("revision") or target.head()
    found = target.look(order["paths"], revision)
    emit({"event": "done", "revision": revision, "remotes": [asdict(item) for item in found.values()]})


def _list(target: Target, order: dict[str, Any], emit: Emit) -> None:
    revision = order.get("revision") or target.head()
    emit({"event": "done", "revision": revision, "remotes": [asdict(item) for item in target.list(revision)]})


def _fetch(target: Target, order: dict[str, Any], emit: Emit) -> None:
    place = target.fetch(order["path"], order.get("revision"), Path(order["folder"]))
    emit({"event": "done", "place": str(place)})


_OPERATIONS: dict[str, Callable[[Target, dict[str, Any], Emit], None]] = {
    "prepare": _prepare,
    "push": _push,
    "look": _look,
    "list": _list,
    "fetch": _fetch,
}


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Entry of the process. Stdout carries events only."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like an event
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.nice(int(order.get("nice", 0)))

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    perform(order, emit)
    events.flush()
    # The library's worker threads may still wait on a stalled connection; nothing is left to be done for them.
    os._exit(0)


if __name__ == "__main__":
    main()
