"""`seqtrack run`: the trainer, and the uploader next to it if there is a target; what the image's entrypoint does.

The uploader may fail, hang or end without effect on training. Imports no torch: the two processes are commands.
"""

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.config.environment import Environment, asks_for_latest_epoch, configure
from seqtrack.errors import USER_ERROR_EXIT_CODE
from seqtrack.process import STOP_SIGNALS, stop_signals
from seqtrack.uploads.fetch import latest_epoch

logger = logging.getLogger(__name__)

SEQTRACK = [sys.executable, "-m", "seqtrack"]
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_RETRY_S = 30.0  # before an uploader that ended too early is restarted


def run(_args: argparse.Namespace) -> int:
    """Train as the environment describes; the exit code is the trainer's."""
    if resolve_latest_epoch():
        return 0
    environment, _ = configure(os.environ)
    if environment.target is None:
        os.execv(sys.executable, [*SEQTRACK, "train"])
    return TrainerWithUploader([*SEQTRACK, "train"], [*SEQTRACK, "upload"], environment).run()


def resolve_latest_epoch() -> bool:
    """Replace RESUME_EPOCH=latest, if it is that, by a number, for a machine that replaces a lost one.

    A run in the output folder keeps the value that it started with; otherwise it is the newest checkpoint of this phase
    on the target, and without one the run starts from the beginning. Returns True if the target has the finished run.
    """
    if not asks_for_latest_epoch(os.environ):
        return False
    del os.environ["RESUME_EPOCH"]
    environment, config = configure(os.environ)
    run = read_run(environment.output_dir / f"phase_{environment.phase}")
    epoch = run.resume_epoch if run is not None else latest_epoch(environment, config)
    found = "as this run started" if run is not None else epoch or "no checkpoint on the target"
    logger.warning("RESUME_EPOCH=latest: %s", found)
    if epoch is not None:
        os.environ["RESUME_EPOCH"] = str(epoch)
    if complete := run is None and epoch is not None and epoch >= config.TRAIN.EPOCH:
        logger.warning("the target has the complete run; nothing to do")
    return complete


def start(command: list[str], variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a child in its own session, so that Ctrl-C reaches it only through us and not also through the terminal. If
    we are killed, the kernel sends it SIGTERM."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    return subprocess.Popen(command, env=variables, start_new_session=True, preexec_fn=in_child)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """The child's exit code, in the shell's convention if a signal ended it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


class TrainerWithUploader:
    """A trainer with an uploader as a second process. The uploader may fail, hang or end without effect on training.

    Args:
        train, upload: the two command lines.
        environment: its `upload_drain_s` are seconds that the uploader may continue after training is complete, its
            `upload_grace_s` after a stop request.
    """

    def __init__(self, train: list[str], upload: list[str], environment: Environment) -> None:
        self.upload_command = upload
        # The uploader itself ends after the grace; both together take less than `docker stop` waits.
        self.drain_s, self.grace_s = environment.upload_drain_s, environment.upload_grace_s + 15
        self.stop_asked = 0
        # A stop signal that arrives between two of these lines must neither be lost nor leave a trainer running.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self.trainer, self.uploader = start(train), start(upload)
        for number in stop_signals():
            signal.signal(number, self._forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.stop_asked = number
        if self.trainer.poll() is None:
            self.trainer.send_signal(number)  # the uploader continues: the checkpoint of this stop is not written yet

    def _wait(self, done: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Wait until `done`, a timeout or a stop request; True if done."""
        end, stop_before = time.monotonic() + seconds, self.stop_asked
        while not done():
            if time.monotonic() > end or self.stop_asked != stop_before:
                return done()
            time.sleep(0.2)
        return True

    def run(self) -> int:
        """Wait for both; return the trainer's exit code."""
        self._watch_training()
        code = exit_code(self.trainer)
        if code == 0 and not self.stop_asked:
            self._drain()
        elif self.stop_asked:
            self._end_uploader()
        elif code == USER_ERROR_EXIT_CODE:  # the start was refused: the reason is the last line
            self.uploader.kill()
            self.uploader.wait()
        else:
            logger.warning("training ended with exit code %d; uploading what it wrote", code)
            self._end_uploader()
            self.uploader = start([*self.upload_command, "--once"])
            self._wait(lambda: self.uploader.poll() is not None, self.drain_s)
            self._end_uploader()
        return code

    def _watch_training(self) -> None:
        ended_at = None
        while self.trainer.poll() is None:
            if ended_at is None and self.uploader.poll() is not None:
                ended_at = time.monotonic()
                if self.uploader.poll() != 0:
                    text = "the uploader ended with exit code %d; training continues, retrying"
                    logger.warning(text, self.uploader.poll())
            if ended_at is not None and time.monotonic() - ended_at > _RETRY_S and not self.stop_asked:
                self.uploader, ended_at = start(self.upload_command), None
            time.sleep(0.2)

    def _drain(self) -> None:
        if self.uploader.poll() is not None:  # it may have ended before the last files were written
            self.uploader = start(self.upload_command)
        logger.warning("training is complete; waiting for the uploader, %.0f s at most", self.drain_s)
        if not self._wait(lambda: self.uploader.poll() is not None, self.drain_s):
            self._end_uploader()
        if self.uploader.poll() != 0:
            logger.warning("not everything is uploaded: `upload --once` uploads the rest of the output folder")

    def _end_uploader(self) -> None:
        """Ask the uploader to finish, and kill it if it does not."""
        if self.uploader.poll() is not None:
            return
        self.uploader.terminate()
        try:
            self.uploader.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            logger.warning("the uploader did not end within %.0f s", self.grace_s)
            self.uploader.kill()
            self.uploader.wait()
