"""Checkpoints ready to track: selected from a run, weights verified, sizes from the configuration stored with them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml

from seqtrack.checkpoints.resume_point import unusable_checkpoints
from seqtrack.checkpoints.store import Manifest, list_checkpoints, load_weights, manifest_of
from seqtrack.config.loader import config_from_text
from seqtrack.config.schema import Config
from seqtrack.errors import Problem, UserError
from seqtrack.model.build import build_empty
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import compare_states
from seqtrack.parsing import short_repr
from seqtrack.run_dir import CHECKPOINTS


def select_checkpoints(run: Path, wanted: Sequence[str]) -> list[Manifest]:
    """The requested checkpoints of a run, each once, by epoch.

    Args:
        run: a folder `phase_N`.
        wanted: each "all", "last", an epoch "3", a range "2-5", or a path of a checkpoint from anywhere.

    Raises:
        UserError: a value that is none of these, or an epoch that does not exist (with those that do).
    """
    folder = run / CHECKPOINTS
    existing = {manifest.epoch: manifest for manifest in list_checkpoints(folder, kinds=("epoch",))}
    chosen: dict[Path, Manifest] = {}
    problems: list[Problem] = []
    for word in wanted:
        found = [existing[epoch] for epoch in sorted(existing)][-1 if word == "last" else 0 :]
        if word in ("all", "last"):
            if not found:
                text = f"{folder} holds no epoch's checkpoint; train first, or name a checkpoint file"
                problems += [Problem(text, "checkpoint.none"), *unusable_checkpoints(folder).values()]
        elif match := re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", word):
            first, last = int(match[1]), int(match[2] or match[1])
            found = [manifest for manifest in found if first <= manifest.epoch <= last]
            if not found or len(found) < last - first + 1:
                epochs = ", ".join(map(str, sorted(existing))) or "none"
                text = f"--checkpoint {word}: {folder} does not hold every such epoch; there are: {epochs}"
                problems.append(Problem(text, "checkpoint.no_epoch"))
        elif "/" in word or "." in word:
            try:
                found = [manifest_of(Path(word))]
            except UserError as error:
                problems += error.problems
        else:
            text = f"--checkpoint {short_repr(word)}: expected all, last, an epoch such as 3, a range 2-5, or a file"
            problems.append(Problem(text, "checkpoint.option"))
        chosen |= {manifest.path: manifest for manifest in found}
    if problems:
        raise UserError(problems)
    return sorted(chosen.values(), key=lambda manifest: manifest.epoch)


def checkpoint_name(manifest: Manifest, others: Iterable[Manifest]) -> str:
    """ "epoch 3", or the file's name where that is more precise or two would have the same name."""
    twins = [one for one in others if one.epoch == manifest.epoch]
    return f"epoch {manifest.epoch}" if manifest.kind == "epoch" and len(twins) < 2 else manifest.path.stem


def checkpoint_source(manifest: Manifest) -> dict[str, str | None]:
    """The identity of a checkpoint in records of an evaluation or a tracked video."""
    return {
        "file": manifest.file,
        "sha256": manifest.sha256,
        "weights_sha256": manifest.weights_sha256,
        "config_digest": manifest.config_digest,
    }


def checkpoint_config(manifest: Manifest) -> Config:
    """The configuration that a checkpoint's manifest holds.

    Raises:
        UserError: there is none, or it is invalid.
    """
    if manifest.config is None:
        text = f"{manifest.manifest_path}: holds no configuration: the sizes of the model are unknown"
        raise UserError(text, "checkpoint.no_config")
    return config_from_text(yaml.safe_dump(manifest.config), f"{manifest.manifest_path.name} (config)")


def load_model(manifest: Manifest, device: torch.device) -> tuple[SeqTrack, Config]:
    """A model in eval mode on `device` with a checkpoint's weights, and the configuration it was trained with.

    Sets as many compute threads as in training: a model that trains fastest on one thread tracks fastest on one.

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
    if config.TRAIN.NUM_THREADS:
        torch.set_num_threads(config.TRAIN.NUM_THREADS)
    return model.to(device).eval(), config
