"""Checkpoints ready to track: selected from a run, weights verified, sizes and settings from their configuration."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from seqtrack.checkpoints.resume_point import unusable_checkpoints
from seqtrack.checkpoints.side_files import Scalar
from seqtrack.checkpoints.store import Manifest, list_checkpoints, load_weights, manifest_of, thin_hint
from seqtrack.config.loader import config_from_text
from seqtrack.config.schema import Config
from seqtrack.device import DTYPES, capability_of, has_tf32, is_emulated
from seqtrack.errors import Problem, UserError
from seqtrack.model.build import build_empty
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import compare_states
from seqtrack.parsing import short_repr
from seqtrack.places import PUBLISHED, find_checkpoint
from seqtrack.run_dir import CHECKPOINTS
from seqtrack.tracking.tracker import TrackerSettings

logger = logging.getLogger(__name__)


def select_checkpoints(run: Path, wanted: Sequence[str]) -> list[Manifest]:
    """The requested checkpoints of a run, each once, by epoch.

    Args:
        run: a folder `phase_N`.
        wanted: each "all", "last", an epoch "3", a range "2-5", or whatever `find_checkpoint` takes.

    Raises:
        UserError: a value that is none of these, or an epoch that does not exist (with those that do).
    """
    folder = run / CHECKPOINTS
    recorded = list_checkpoints(folder, kinds=("epoch", "thin"))
    existing = [one for one in recorded if one.kind == "epoch"]
    epochs = ", ".join(str(one.epoch) for one in existing)
    chosen: dict[Path, Manifest] = {}
    problems: list[Problem] = []
    for word in wanted:
        found: list[Manifest] = []
        if match := re.fullmatch(r"all|last|([0-9]{1,18})(?:-([0-9]{1,18}))?", word):
            first, last = int(match[1] or 0), int(match[2] or match[1] or 10**18)
            found = [one for one in existing if first <= one.epoch <= last][-1 if word == "last" else 0 :]
            if not found or (match[1] and len({one.epoch for one in found}) <= last - first):
                there = epochs or "none; train first, or name a checkpoint file"
                text = f"--checkpoint {word}: {folder} does not hold every such epoch; there are: {there}"
                text += thin_hint(one for one in recorded if first <= one.epoch <= last)
                problems.append(Problem(text, "checkpoint.no_epoch" if epochs else "checkpoint.none"))
                problems += [] if epochs else unusable_checkpoints(folder)
        elif "/" in word or "." in word or word in PUBLISHED:
            try:
                found = [manifest_of(find_checkpoint(word))]
            except UserError as error:
                problems += error.problems
        else:
            text = (
                f"--checkpoint {short_repr(word)}: expected all, last, an epoch such as 3, a range 2-5, a file, or nano"
            )
            problems.append(Problem(text, "checkpoint.option"))
        chosen |= {manifest.path: manifest for manifest in found}
    if problems:
        raise UserError(problems)
    return sorted(chosen.values(), key=lambda manifest: manifest.epoch)


def checkpoint_name(manifest: Manifest, others: Iterable[Manifest]) -> str:
    """ "epoch 3", or the file's name where that is more precise or two would have the same name."""
    twins = [one for one in others if one.epoch == manifest.epoch]
    return f"epoch {manifest.epoch}" if manifest.kind == "epoch" and len(twins) < 2 else manifest.path.stem


def checkpoint_source(manifest: Manifest) -> dict[str, Scalar]:
    """The identity of a checkpoint in records of an evaluation or a tracked video."""
    return manifest.model_dump(include={"file", "sha256", "weights_sha256", "config_digest"})


def checkpoint_config(manifest: Manifest) -> Config:
    """The configuration that a checkpoint's manifest holds.

    Raises:
        UserError: there is none, or it is invalid.
    """
    if manifest.config is None:
        text = f"{manifest.manifest_path}: holds no configuration: the sizes of the model are unknown"
        raise UserError(text, "checkpoint.no_config")
    return config_from_text(json.dumps(manifest.config), str(manifest.manifest_path))


def load_model(manifest: Manifest, device: torch.device) -> tuple[SeqTrack, Config]:
    """A model in eval mode on `device` with a checkpoint's weights, and the configuration it was trained with.

    Sets as many compute threads as in training, see `set_threads`.

    Raises:
        UserError: a damaged file, or weights that do not fit the configuration.
    """
    config = checkpoint_config(manifest)
    weights = load_weights(manifest)
    model = build_empty(model_spec(config))
    if problems := compare_states(weights, model.state_dict(), what=str(manifest.path)):
        last = Problem(f"{manifest.path}: its weights do not fit its configuration", "weights.other_model")
        raise UserError([*problems, last])
    model.load_state_dict(weights, assign=True)
    set_threads(config)
    return model.to(device).eval(), config


def set_threads(config: Config) -> None:
    """As many compute threads as in training: a model that trains fastest on one thread tracks fastest on one."""
    if config.TRAIN.NUM_THREADS:
        torch.set_num_threads(config.TRAIN.NUM_THREADS)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision without hardware support: it would have no effect, or be slower than float32.

    Raises:
        UserError: an unknown one, tf32 or fp16 on a CPU, or any but fp32 on a GPU that is too old for it.
    """
    if precision not in (*DTYPES, "tf32"):
        known = ", ".join((*DTYPES, "tf32"))
        raise UserError(f"precision {precision!r}: expected one of {known}", "tracking.precision")
    capability = capability_of(device)
    if capability is None and precision in ("tf32", "fp16"):
        text = f"precision {precision} needs a GPU; a CPU tracks in fp32 or bf16"
        raise UserError(text, "tracking.precision_on_cpu")
    if capability and (is_emulated(precision, capability) or (precision == "tf32" and not has_tf32(capability))):
        text = f"precision {precision} needs a GPU of compute capability 8.0 or later, this one has {capability}"
        raise UserError(f"{text}; use fp16 or fp32", "tracking.precision_on_gpu")


def tracker_settings(config: Config, *, dataset: str | None, precision: str = "fp32") -> TrackerSettings:
    """The settings of a configuration for a data set.

    Args:
        dataset: its name, in any case, looked up in TEST.UPDATE_INTERVALS and TEST.UPDATE_THRESHOLD. A data set without
            its own interval takes DEFAULT, which is logged. None (a user's own video) takes DEFAULT silently.
    """
    test, data = config.TEST, config.DATA
    intervals, thresholds = test.UPDATE_INTERVALS.model_dump(), test.UPDATE_THRESHOLD.model_dump()
    key = (dataset or "DEFAULT").upper()
    if key not in intervals and test.NUM_TEMPLATES > 1:  # with one template there are no updates
        logger.info("TEST.UPDATE_INTERVALS has no key %s: DEFAULT, %d frames, is used", key, intervals["DEFAULT"])
    return TrackerSettings(
        search_factor=test.SEARCH_FACTOR,
        template_factor=test.TEMPLATE_FACTOR,
        window=test.WINDOW,
        update_interval=int(intervals.get(key, intervals["DEFAULT"])),
        update_threshold=float(thresholds.get(key, thresholds["DEFAULT"])),
        mean=data.MEAN,
        std=data.STD,
        precision=precision,
        center_rate=test.CENTER_RATE,
        size_rate=test.SIZE_RATE,
    )
