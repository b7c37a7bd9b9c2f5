"""The optimizer's groups and the learning rate of every epoch are the authors'."""

import json
from pathlib import Path

import model_sets as sets
import pytest

from seqtrack.config.loader import load_config
from seqtrack.model.build import build_empty
from seqtrack.model.spec import model_spec
from seqtrack.training.optimizer import NamedOptimizer, learning_rate_factor, parameter_groups


@pytest.mark.parametrize("path", sets.find("param_groups_*.json"))
def test_golden_groups_hold_the_authors_parameters_in_their_order_with_their_rates(path: Path) -> None:
    size = path.stem.removeprefix("param_groups_")
    sets.spec_of_size(size)
    config = load_config(f"seqtrack_{size}")
    model = build_empty(model_spec(config)).to_empty(device="cpu")
    names = [group["names"] for group in parameter_groups(model, config.TRAIN)]
    groups = NamedOptimizer(model, config.TRAIN).inner.param_groups
    for own, mine, other in zip(names, groups, json.loads(path.read_text()), strict=True):
        assert own == other["names"]
        assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12)
        assert (mine["weight_decay"], list(mine["betas"]), mine["eps"]) == (
            other["weight_decay"], other["betas"], other["eps"],
        )  # fmt: skip
        assert sum(parameter.numel() for parameter in mine["params"]) == other["numel"]


@pytest.mark.parametrize("path", sets.find("lr_schedule.json"))
def test_golden_rate_of_every_epoch(path: Path) -> None:
    recorded = json.loads(path.read_text())
    config = load_config("seqtrack_b256")
    steps = 7  # of an epoch: the authors' rate changes between epochs only
    base = config.TRAIN.LR, config.TRAIN.LR * config.TRAIN.ENCODER_MULTIPLIER
    assert len(recorded["epoch"]) > config.TRAIN.LR_DROP_EPOCH, "the drop is in the record"
    for epoch, rates in zip(recorded["epoch"], recorded["lr_used_during_epoch"], strict=True):
        for step in ((epoch - 1) * steps, epoch * steps - 1):
            factor = learning_rate_factor(step, config.TRAIN, steps)
            assert [one * factor for one in base] == pytest.approx(rates, rel=1e-9), epoch
