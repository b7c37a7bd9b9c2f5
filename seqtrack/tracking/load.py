"""A checkpoint made ready to track: weights verified, sizes from the configuration stored with it.

Knows checkpoints, configurations and models; knows no video.
"""

import torch
import yaml

from seqtrack.checkpoints.store import Manifest, load_weights
from seqtrack.config.loader import config_from_text, load_config
from seqtrack.config.schema import Config
from seqtrack.errors import Problem, UserError
from seqtrack.model.build import build_empty
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import compare_states
from seqtrack.run_dir import CONFIG_FILE


def checkpoint_config(manifest: Manifest) -> Config:
    """The configuration of a checkpoint: the one in its manifest, else the run's `config.yaml`.

    Raises:
        UserError: there is none, or it is not valid.
    """
    if manifest.config is not None:
        return config_from_text(yaml.safe_dump(manifest.config), f"{manifest.manifest_path.name} (config)")
    beside = manifest.folder.parent / CONFIG_FILE
    if not beside.is_file():
        raise UserError(
            f"{manifest.path}: its manifest holds no configuration and there is no {beside}: the sizes of the model "
            "are not known"
        )
    return load_config(str(beside))


def load_model(manifest: Manifest, device: torch.device) -> tuple[SeqTrack, Config]:
    """A model in eval mode on `device`, with a checkpoint's weights, and the configuration it was trained with.

    Raises:
        UserError: a damaged file, or weights that do not fit the configuration.
    """
    config = checkpoint_config(manifest)
    weights = load_weights(manifest)
    model = build_empty(model_spec(config))
    problems = compare_states(weights, model.state_dict(), what=str(manifest.path))
    if problems:
        last = Problem(f"{manifest.path}: its weights do not fit its configuration", "weights.other_model")
        raise UserError([*problems, last])
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval(), config


def set_threads(config: Config) -> None:
    """Compute threads as in training: a model that trains fastest on one thread tracks fastest on one."""
    if config.TRAIN.NUM_THREADS:
        torch.set_num_threads(config.TRAIN.NUM_THREADS)
