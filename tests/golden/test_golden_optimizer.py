"""The optimizer's groups and the learning rate of every epoch are the authors'."""

import json
from pathlib import Path

import model_sets as sets
import pytest

from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.model.build import build_empty
from seqtrack.model.spec import model_spec
from seqtrack.training import build
from seqtrack.training.optimizer import NamedOptimizer, learning_rate_factor, parameter_groups

_GROUPS = sets.find("param_groups_*.json")


def _config_of(path: Path) -> Config:
    size = path.stem.removeprefix("param_groups_")
    sets.spec_of_size(size)
    return load_config(f"seqtrack_{size}")


@pytest.mark.parametrize("path", _GROUPS)
def test_the_groups_hold_the_authors_parameters_in_their_order_with_their_rates(path: Path) -> None:
    config = _config_of(path)
    model = build_empty(model_spec(config))
    ours = parameter_groups(model, build.optimizer_settings(config))
    theirs = json.loads(path.read_text())
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["names"] == other["names"]
        assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12)
        assert mine["weight_decay"] == other["weight_decay"]
        assert sum(parameter.numel() for parameter in mine["params"]) == other["numel"]


@pytest.mark.parametrize("path", _GROUPS[:1])
def test_adamw_has_the_authors_constants(path: Path) -> None:
    config = _config_of(path)
    optimizer = NamedOptimizer(build_empty(model_spec(config)).to_empty(device="cpu"), build.optimizer_settings(config))
    for mine, other in zip(optimizer.inner.param_groups, json.loads(path.read_text()), strict=True):
        assert list(mine["betas"]) == other["betas"]
        assert mine["eps"] == other["eps"]


def test_the_rate_of_every_epoch_is_the_authors(goldens: Path) -> None:
    path = goldens / "lr_schedule.json"
    if not path.exists():
        pytest.skip(f"{goldens} has no lr_schedule.json")
    recorded = json.loads(path.read_text())
    config = load_config("seqtrack_b256")
    steps = 7  # of an epoch: the authors' rate changes between epochs only
    settings = build.schedule_settings(config, steps)
    base = config.TRAIN.LR, config.TRAIN.LR * config.TRAIN.ENCODER_MULTIPLIER
    assert len(recorded["epoch"]) > config.TRAIN.LR_DROP_EPOCH, "the drop is in the record"
    for epoch, rates in zip(recorded["epoch"], recorded["lr_used_during_epoch"], strict=True):
        for step in ((epoch - 1) * steps, epoch * steps - 1):
            factor = learning_rate_factor(step, settings)
            assert [one * factor for one in base] == pytest.approx(rates, rel=1e-9), epoch
