"""`seqtrack upload`: the sidecar that pushes new files to their target, and what it says of itself."""

import argparse
import json
import logging
import os
import time

from seqtrack.errors import UserError

_NICE = 10  # hashing and copying give way to training; the sending process gives way still more

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything else comes from the environment: OUTPUT_DIR, HF_REPO, HF_TOKEN_PATH, UPLOAD_*."""
    parser.add_argument(
        "action", nargs="?", choices=("watch", "status"), default="watch", help="default: watch until training is done"
    )
    parser.add_argument("--once", action="store_true", help="one pass; exit code 0 only if everything is verified")
    parser.add_argument("--health", action="store_true", help="with status: exit code 1 and the reasons if not well")


def run(args: argparse.Namespace) -> int:
    """Watch, make one pass, or print the status."""
    from seqtrack.config.environment import read_environment
    from seqtrack.uploads.settings import choose_target, read_settings

    environment = read_environment(os.environ)
    settings = read_settings(os.environ)
    if args.action == "status":
        return _status(args.health)
    target = choose_target(environment)
    if target is None:
        logger.info("nothing is uploaded: neither HF_REPO nor UPLOAD_TARGET is set")
        return 0

    from seqtrack.uploads.watch import EXIT_INCOMPLETE, Stop, Watch

    # The client's and our own lines tell when; training's log has its own clock.
    _with_time()
    if not args.once:
        os.nice(_NICE)
    stop = Stop()
    stop.listen()
    logger.info("watching %s for %s", environment.output_dir, target.shown)
    waited = time.monotonic()
    told = False
    while not stop.asked.is_set():
        try:
            with Watch(environment.output_dir, target, settings, stop=stop) as sidecar:
                return sidecar.once() if args.once else sidecar.watch()
        except BlockingIOError:
            if args.once and time.monotonic() - waited > settings.patience_s:
                raise UserError(f"another sidecar is at work on {environment.output_dir}; stop it first") from None
            if not told:
                logger.warning("another sidecar is at work on %s; waiting for it to end", environment.output_dir)
            told = True
            stop.asked.wait(settings.poll_s)
    return EXIT_INCOMPLETE


def _with_time() -> None:
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


def _status(health: bool) -> int:
    """Print the status file; with `health`, judge it as a container's healthcheck does."""
    from seqtrack.config.environment import read_environment
    from seqtrack.uploads.settings import choose_target, read_settings
    from seqtrack.uploads.status import health_problems, read_status

    environment = read_environment(os.environ)
    status = read_status(environment.output_dir)
    if health and choose_target(environment) is None:
        print("nothing is to be uploaded")
        return 0
    if not health:
        print(json.dumps(status, indent=2) if status is not None else "the sidecar has not started")
        return 0
    reasons = health_problems(status, read_settings(os.environ), time.time())
    for reason in reasons:
        print(reason)
    if not reasons:
        print("well")
    return 1 if reasons else 0
