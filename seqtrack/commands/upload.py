"""`seqtrack upload`: the uploader, which pushes new files to their target, and its status."""

import argparse
import logging
import os
import signal
import threading
import time

from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError
from seqtrack.uploads.client import Clock, TargetClient
from seqtrack.uploads.state import UploadState, read_state
from seqtrack.uploads.target import UploadSettings, choose_target, read_settings
from seqtrack.uploads.uploader import EXIT_INCOMPLETE, Uploader

HEARTBEAT_S = 60.0  # a status older than this has no living writer
_NICE, _CHILD_NICE = 10, 19  # hashing and copying give way to training; the sending process gives way still more

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Watch, make one pass, or print the status."""

    environment = read_environment(os.environ)
    settings = read_settings(os.environ)
    if args.action == "status" and not args.health:
        state = read_state(environment.output_dir)
        print("the uploader has not started" if state is None else state.model_dump_json(indent=2, exclude={"files"}))
        return 0
    if environment.target is None:
        logger.info("nothing is uploaded: neither HF_REPO nor UPLOAD_TARGET is set")
        return 0
    if args.action == "status":
        problems = health_problems(read_state(environment.output_dir), settings, time.time())
        print("\n".join(problems) or "healthy")
        return 1 if problems else 0

    for handler in logging.getLogger().handlers:  # training's log has its own clock
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not args.once:
        os.nice(_NICE)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    target = choose_target(environment)
    if args.once:
        require_output(environment)
    logger.info("uploading %s to %s", environment.output_dir, target.label)
    end, warned = time.monotonic() + settings.patience_s, False
    while not stop.is_set():
        try:
            client = TargetClient(target, settings, clock=Clock(sleep=stop.wait), nice=_CHILD_NICE)
            with Uploader(environment.output_dir, client, stop) as uploader:
                return uploader.run(once=args.once)
        except BlockingIOError:
            text = f"another uploader runs on {environment.output_dir}"
            if args.once and time.monotonic() > end:
                raise UserError(f"{text}; stop it first", code="upload.locked") from None
            if not warned:
                logger.warning("%s; waiting for it to end", text)
            warned = True
            stop.wait(settings.poll_s)
    return EXIT_INCOMPLETE


def require_output(environment: Environment) -> None:
    """A UserError if there is no output folder: that nothing is missing on the target would be true of any name."""
    if not environment.output_dir.is_dir():
        raise UserError(f"OUTPUT_DIR: {environment.output_dir} is not a folder", code="upload.no_output")


def health_problems(state: UploadState | None, settings: UploadSettings, now: float) -> list[str]:
    """Why the uploader is unhealthy at `now` (wall clock); empty if it is healthy, or ended with all verified."""
    if state is None:
        return ["there is no status file: the uploader has not started"]
    if state.state == "done":
        return []
    age, waited_s = abs(now - state.time), state.oldest_age_s
    found = [f"the last heartbeat is {age:.0f} s old (limit {HEARTBEAT_S:.0f} s)"] if age > HEARTBEAT_S else []
    if waited_s > settings.lag_limit_s:
        found.append(f"a file has waited for {waited_s:.0f} s (limit {settings.lag_limit_s:.0f} s)")
    if state.fault is not None and state.fault.action == "person":
        found.append(state.fault.line)
    for name, line in list(state.problems.items())[:1]:
        found.append(f"{len(state.problems)} files cannot be uploaded, such as {name}: {line}")
    return found
