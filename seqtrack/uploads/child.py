"""The process that speaks to a target: reads one order from stdin, writes events to stdout, ends.

One process per order, so that a hang, a crash or a leak of the client costs one batch and can be ended from outside. It
watches stdin: when the parent dies, the pipe closes and this process exits at once, so that no orphan commits after a
new parent has begun.

An order: {"operation": "push"|"look"|"list"|"fetch", "target": {...}, ...}. Events, one JSON object per line:
{"event": "prepared"|"listed"|"already"|"committed"|"verified", ...}, and last {"event": "done", ...} or
{"event": "fault", ...}.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqtrack.config.environment import read_token
from seqtrack.errors import UserError
from seqtrack.uploads.errors import Fault, classify
from seqtrack.uploads.target import MismatchError, Remote, Staged, Target, open_target

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
        if "prepare" in order:
            emit({"event": "prepared", **asdict(target.prepare(make=order["prepare"] == "make"))})
        emit({"event": "done", **_OPERATIONS[order["operation"]](target, order, emit)})
    except Exception as error:  # noqa: BLE001  whatever a client raises must reach the parent as one classified line
        emit({"event": "fault", **classify(error, token=token).to_json()})


def _push(target: Target, order: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """List what the order asks for, then upload what the target does not hold yet in one commit.

    What is reported of each file is only what the target lists.
    """
    if "look" in order:
        emit({"event": "listed", "remotes": _values(target.look(order["look"]).values())})
    files = [Staged(**{**item, "stamp": tuple(item["stamp"])}) for item in order.get("files", [])]
    if not files:
        return {}
    tries = int(order.get("tries", 3))
    commit: str | None = None
    for attempt in range(1, tries + 1):
        # The head first: what is committed after it was read makes our commit fail rather than come twice.
        head = target.head()
        missing = _missing(files, target.look([item.path for item in files]))
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
            fault = classify(error)
            # To wait as long as asked is for the parent; trouble with one file is better met in a smaller batch.
            passing = fault.kind == "network" and fault.wait_s == 0.0 and fault.path is None
            if attempt == tries or not passing:
                raise
            time.sleep(0.2 * attempt)
    remotes = target.look([item.path for item in files])
    wrong = [item.path for item in _missing(files, remotes)]
    emit({"event": "verified", "commit": commit, "paths": [item.path for item in files if item.path not in wrong]})
    if wrong:
        raise MismatchError(wrong[0], f"the target lists {remotes.get(wrong[0])}, which is not what was uploaded")
    return {"commit": commit}


def _missing(files: Sequence[Staged], remotes: dict[str, Remote]) -> list[Staged]:
    return [
        item
        for item in files
        if item.path not in remotes or not remotes[item.path].holds(item.size, item.sha256, item.git_sha1)
    ]


def _values(remotes: Iterable[Remote]) -> list[dict[str, Any]]:
    return [asdict(item) for item in remotes]


def _look(target: Target, order: dict[str, Any], emit: Emit) -> dict[str, Any]:
    revision = order.get("revision") or target.head()
    return {"revision": revision, "remotes": _values(target.look(order["paths"], revision).values())}


def _list(target: Target, order: dict[str, Any], emit: Emit) -> dict[str, Any]:
    revision = order.get("revision") or target.head()
    return {"revision": revision, "remotes": _values(target.list(revision))}


def _fetch(target: Target, order: dict[str, Any], emit: Emit) -> dict[str, Any]:
    return {"place": str(target.fetch(order["path"], order.get("revision"), Path(order["folder"])))}


_OPERATIONS: dict[str, Callable[[Target, dict[str, Any], Emit], dict[str, Any]]] = {
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
    # The library's worker threads may still wait on a stalled connection; nothing is left to be done for them.
    os._exit(0)


if __name__ == "__main__":
    main()
