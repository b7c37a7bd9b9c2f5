"""Resuming: is the checkpoint of the same experiment, where does the run go on, and what does it promise.

Runs on rank 0 before anything is written; the other ranks are told the outcome.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from seqtrack.checkpoints import start as starting
from seqtrack.checkpoints.files import DamagedFileError, read_header
from seqtrack.checkpoints.store import Manifest, load_tensors, manifest_of, read_tensors, read_values
from seqtrack.config.environment import Environment
from seqtrack.config.loader import compare_configs, config_digest, config_from_text
from seqtrack.config.schema import Config
from seqtrack.data.sources import FRAMES_COVERED_BY
from seqtrack.device import explain_out_of_memory
from seqtrack.engine import fingerprint as prints
from seqtrack.engine.ranks import Ranks
from seqtrack.engine.state import TrainState
from seqtrack.errors import Problem, UserError

logger = logging.getLogger(__name__)

# Checkpoints brought from the Hub to resume from; a hidden folder, so that the sidecar does not send them back.
FETCHED = ".fetched"

_OTHER_DATA = Problem(
    "the data are other sequences, annotations or frame files than there (digest in dataset.json)", "data.changed"
)
# Named with every guarantee: the digest of the data knows no more of the frame files.
_CONDITION = f"(of the frame files, the {FRAMES_COVERED_BY} was compared, not the contents)"


class Reading:
    """Keeps the tensors of the checkpoint that was verified last: it is not read a second time to be loaded."""

    def __init__(self) -> None:
        self._manifest: Manifest | None = None
        self._tensors: dict[str, Tensor] = {}

    def verify(self, manifest: Manifest) -> None:
        """Read a checkpoint.

        Raises:
            DamagedFileError: it is not what its manifest says.
        """
        self._manifest, self._tensors = None, {}  # a damaged one must not stand in memory beside the next
        self._tensors = read_tensors(manifest)
        self._manifest = manifest

    def take(self, manifest: Manifest) -> dict[str, Tensor]:
        """The tensors of that checkpoint, read now if it was not the last; they are the caller's from now on.

        Raises:
            UserError: it is damaged.
        """
        known, tensors = self._manifest, self._tensors
        self._manifest, self._tensors = None, {}
        return tensors if known == manifest else load_tensors(manifest)


def find_run(environment: Environment, config: Config, data_digest: str, reading: Reading) -> starting.Start:
    """Where this run starts, after checking that it is the run of this folder and of that checkpoint.

    Raises:
        UserError: another configuration or other data (all differences are listed), or no such checkpoint.
    """
    folder = environment.phase_folder()
    run = starting.read_run(folder)
    if run is not None:
        _refuse_another_experiment(folder, run, config, data_digest)
    others = [environment.phase_folder(phase) for phase in (1, 2) if phase != environment.phase]

    fetched = environment.output_dir / FETCHED

    def fetch(epoch: int) -> Manifest:
        # Imported here: a run that finds its checkpoint on this disk need not load the Hub's client.
        from seqtrack.uploads.fetch import fetch_checkpoint

        logger.info("epoch %d is not on this disk: fetching it from %s", epoch, environment.target)
        return manifest_of(fetch_checkpoint(environment, epoch, fetched / starting.CHECKPOINTS))

    start = starting.find_start(
        folder,
        resume_epoch=environment.resume_epoch,
        elsewhere=[*(others if environment.phase == 2 else []), fetched],
        fetch=fetch if environment.target else None,
        verify=reading.verify,
    )
    if start.manifest is not None:
        _refuse_another_checkpoint(start.manifest, config, data_digest)
    return start


def _refuse_another_experiment(folder: Path, run: dict[str, Any], config: Config, data_digest: str) -> None:
    stored = folder / "config.yaml"
    try:
        theirs = config_from_text(stored.read_text(encoding="utf-8"), str(stored))
    except OSError as error:
        raise UserError(
            f"{stored} of the run in {folder} cannot be read ({error.strerror}); move {folder} aside"
        ) from error
    problems = [
        f"{item.key} is {item.b!r} now, {item.a!r} there" for item in compare_configs(theirs, config) if item.must_match
    ]
    if run.get("data_digest") != data_digest:
        problems.append(_OTHER_DATA)
    if problems:
        raise UserError(
            [
                f"{folder} holds a run of another configuration; nothing was changed. "
                "Set OUTPUT_DIR to another folder, or set these back:",
                *problems,
            ],
            _code(problems),
        )


def _refuse_another_checkpoint(manifest: Manifest, config: Config, data_digest: str) -> None:
    problems = []
    if manifest.config_digest != config_digest(config):
        differences = []
        if manifest.config is not None:
            theirs = config_from_text(json.dumps(manifest.config), str(manifest.manifest_path))
            differences = [
                f"{item.key} is {item.b!r} now, {item.a!r} there"
                for item in compare_configs(theirs, config)
                if item.must_match
            ]
        problems += differences or ["its configuration has another digest"]
    if manifest.data_digest != data_digest:
        problems.append(_OTHER_DATA)
    if problems:
        text = f"{manifest.path} is of another experiment and cannot be resumed by this one:"
        raise UserError([text, *problems], _code(problems))


def _code(problems: list[str]) -> str:
    return _OTHER_DATA.code if problems == [_OTHER_DATA] else "run.other_experiment"


def load_state(state: TrainState, start: starting.Start, ranks: Ranks, reading: Reading) -> None:
    """Put the checkpoint's state into `state`, on every rank.

    Raises:
        UserError: the checkpoint does not fit.
    """
    manifest = start.manifest
    if manifest is None:
        return
    values = ranks.agree(lambda: _values(manifest))
    tensors = ranks.broadcast(reading.take(manifest) if ranks.is_main else {})
    with explain_out_of_memory("while the checkpoint was put on the device", "take a smaller model, or DEVICE=cpu"):
        state.restore(tensors, values)


def _values(manifest: Manifest) -> dict[str, Any]:
    try:
        return read_values(manifest.path, read_header(manifest.path))  # `Reading` checks every byte
    except (DamagedFileError, OSError) as error:
        raise UserError(f"{error}; take another checkpoint, or fetch this one again") from error


@contextlib.contextmanager
def claim_folder(folder: Path, start: starting.Start, ranks: Ranks) -> Iterator[None]:
    """The run's folder, made ready by rank 0 and kept from other runs until the block ends.

    Raises:
        UserError: it cannot be written, or another run is in it.
    """
    with contextlib.ExitStack() as held:

        def prepare() -> None:
            held.enter_context(starting.hold_folder(folder))
            starting.prepare_folder(folder, start)

        ranks.agree(prepare)
        yield


def say_start(start: starting.Start, ours: dict[str, Any]) -> dict[str, Any]:
    """Say where the run starts and which promise holds; returns the record of it for run.json."""
    held, differences = prints.promise(ours, ours if start.manifest is None else start.manifest.fingerprint)
    record: dict[str, Any] = {
        "step": start.step,
        "epoch": 0,
        "from": None,
        "fingerprint": ours,
        "promise": held,
        "differences": differences,
    }
    if start.manifest is None:
        start_line = "starts from scratch; promise for a resumed run on this hardware and lock: %s %s"
        logger.info(start_line, held, _CONDITION)
        return record
    logger.info(
        "resumes after step %d (epoch %d, %d samples into it) from %s, sha256 %s",
        start.manifest.step,
        start.manifest.epoch,
        start.manifest.sample,
        start.manifest.path,
        start.manifest.sha256[:16],
    )
    logger.info("promise that holds with that checkpoint: %s %s", held, _CONDITION)
    for difference in differences:
        logger.info("  because %s", difference)
    return {
        **record,
        "epoch": start.manifest.epoch,
        "from": f"{start.manifest.folder.parent.name}/{start.manifest.file}",
    }
