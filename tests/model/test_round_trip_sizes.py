"""Export and import at real size: bitwise equal, with the authors' parameter names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from seqtrack.checkpoints.store import load_weights, manifest_of, write_weights
from seqtrack.cli import main
from seqtrack.config.loader import config_digest, dump_config, load_config
from seqtrack.model.build import build_empty
from seqtrack.model.spec import model_spec

CONFIG = "seqtrack_b256"


def _any_bits(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Random finite float32 bit patterns, with negative zeros and denormals."""
    rng = np.random.default_rng(3)
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    tokens = torch.from_numpy(
        rng.integers(0, 1 << 64, (sum(sizes.values()) + 1) // 2, dtype=np.uint64).view(np.float32)
    )
    tokens[~tokens.isfinite()] = -0.0
    parts = tokens[: sum(sizes.values())].split(list(sizes.values()))
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        assert found[name].shape == value.shape, name
        # As integers, because -0.0 == 0.0.
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32)), name


@pytest.mark.long
def test_b256_round_trip_is_bitwise_equal(tmp_path: Path) -> None:
    config = load_config(CONFIG)
    empty = build_empty(model_spec(config)).state_dict()
    state = _any_bits({name: value.shape for name, value in empty.items()})
    assert sum(value.numel() for value in state.values()) == 90_596_002
    describe = {
        "epoch": 500, "step": 9, "sample": 0, "loss": 1.0, "iou": 0.5, "parent_sha256": None, "data_digest": None,
        "config_digest": config_digest(config), "created": "2026-01-01T00:00:00+00:00",
        "config": yaml.safe_load(dump_config(config)),
    }  # fmt: skip
    first = write_weights(tmp_path / "SEQTRACK_ep0500.safetensors", state, describe=describe).path
    exported = tmp_path / "SEQTRACK_ep0500.pth.tar"
    assert main(["export", str(first), "-o", str(exported)]) == 0
    theirs = torch.load(exported, weights_only=True, mmap=True)["net"]
    _assert_same_bits(theirs, state)
    # Negative control: one bit among 2.9 billion is found.
    theirs["bottleneck.bias"] = torch.zeros(256)
    with pytest.raises(AssertionError, match=r"bottleneck\.bias"):
        _assert_same_bits(theirs, {**state, "bottleneck.bias": -torch.zeros(256)})
    del theirs
    again = tmp_path / "again.safetensors"
    assert main(["import", str(exported), "--config", CONFIG, "-o", str(again)]) == 0
    assert manifest_of(again).weights_sha256 == manifest_of(first).weights_sha256
    _assert_same_bits(load_weights(manifest_of(again)), state)


@pytest.mark.parametrize("size", ["b256", "b384", "l256", "l384"])
def test_parameter_names_are_the_authors(size: str) -> None:
    folder = os.environ.get("SEQTRACK_GOLDENS")
    path = Path(folder or "", f"keys_{size}.json")
    if not folder or not path.is_file():
        pytest.skip(f"SEQTRACK_GOLDENS names no folder with {path.name}")
    ours = build_empty(model_spec(load_config(f"seqtrack_{size}"))).state_dict()
    assert {name: [*value.shape] for name, value in ours.items()} == json.loads(path.read_text())["keys"]
