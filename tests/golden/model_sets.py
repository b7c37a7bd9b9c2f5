"""Find the model's reference sets and regenerate their weights and inputs from names.

The rules are those of the goldens' README; only NumPy is needed. Sets are found by file name, so a folder with other
sizes or variants is tested by setting SEQTRACK_GOLDENS.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec

Arrays = dict[str, np.ndarray]
# Device of the models; numbers are compared on the CPU.
DEVICE = torch.device(os.environ.get("SEQTRACK_TEST_DEVICE", "cpu"))

SIZES = {
    "b256": ModelSpec(),
    "b384": ModelSpec(search_size=384, template_size=384),
    "l256": ModelSpec(encoder_type="vit_large_patch16"),
    "l384": ModelSpec(encoder_type="vit_large_patch16", search_size=384, template_size=384),
}

# Distance of the authors' float32 from their float64 at B256, by rule: (largest, relative L2). Also used for other
# sizes if the folder lacks theirs.
NOISE_B256 = {
    "A": {"enc": (3.731e-6, 7.165e-7), "logits": (3.104e-8, 2.032e-7)},
    "B": {"enc": (3.138e-6, 5.732e-7), "logits": (6.395e-6, 4.926e-7)},
}


def folder() -> Path | None:
    """The folder of reference sets, or None."""
    value = os.environ.get("SEQTRACK_GOLDENS")
    return Path(value).resolve() if value and Path(value).is_dir() else None


def find(pattern: str, *, companion: str | None = None) -> list[Any]:
    """One pytest parameter per matching file, with the set's name as its id; one skipped parameter if there is none.

    Args:
        companion: suffix of the set's second file; a set without it is skipped.
    """
    where, skip = folder(), pytest.mark.skip
    paths = sorted(where.glob(pattern)) if where else []
    whole = {path: companion is None or path.with_suffix(companion).is_file() for path in paths}
    found = [pytest.param(p, id=p.stem, marks=[] if whole[p] else skip(reason=f"no {companion}")) for p in paths]
    why = f"no {pattern} in {where}" if where else "SEQTRACK_GOLDENS names no folder"
    return found or [pytest.param(None, id=f"no-{pattern}", marks=skip(reason=why))]


def spec_of_size(size: str) -> ModelSpec:
    """The model of a set's name; skips if the size is unknown."""
    if size not in SIZES:
        pytest.skip(f"unknown size {size}; known are {', '.join(SIZES)}")
    return SIZES[size]


def read(path: Path) -> Arrays:
    """All arrays of an npz file."""
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def read_json(name: str) -> Any:
    """A JSON file of the folder, or None if it does not exist."""
    where = folder()
    return json.loads((where / name).read_text()) if where and (where / name).is_file() else None


def rng(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)))


def gauss(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return rng(name).standard_normal(shape).astype(np.float32)


def uint8_image(name: str, height: int, width: int) -> np.ndarray:
    """An image of noise."""
    return rng(name).integers(0, 256, (height, width, 3), dtype=np.uint8)


def video(count: int) -> tuple[list[np.ndarray], list[float]]:
    """Frames of 640 x 360 px, RGB, in which a block of noise moves over other noise, and its first box, xywh."""
    background = np.kron(rng("video/bg").integers(0, 256, (45, 80, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    block = np.kron(rng("video/obj").integers(0, 256, (12, 15, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    frames = []
    for index in range(count):
        x, y = 200 + 5 * index, 120 + 3 * index
        frame = background.copy()
        frame[y : y + 48, x : x + 60] = block
        frames.append(frame)
    return frames, [200.0, 120.0, 60.0, 48.0]


def weight(key: str, shape: tuple[int, ...], rule: str) -> np.ndarray:
    """One parameter by its name: small everywhere (rule A), or such that the output depends on the input (rule B)."""
    drawn = gauss(key, shape)
    if len(shape) == 1:
        drawn = drawn * np.float32(0.02)
        return drawn + np.float32(1) if key.endswith("weight") else drawn
    if rule == "A":
        return drawn * np.float32(0.02)
    if len(shape) == 3:
        return drawn * np.float32(0.5)
    if "embeddings.weight" in key:
        return drawn
    gain = 6.0 if key == "vocab_embed.layers.2.weight" else 1.0
    return drawn * np.float32(gain / math.sqrt(int(np.prod(shape[1:]))))


def fill(model: SeqTrack, rule: str) -> SeqTrack:
    """Put the recipe's weights into a model of any device, and set it to eval."""
    state = {
        name: torch.from_numpy(weight(name, tuple(value.shape), rule)) for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.bottleneck_used or not name.startswith("bottleneck"))
    return model.to(DEVICE).eval()


def images(prefix: str, template: int, search: int, batch: int, count: int) -> tuple[Tensor, Tensor]:
    """Normalised inputs: templates (B, T, 3, S, S) and search (B, 3, S', S')."""
    parts = [
        gauss(f"{prefix}/template{i}/{batch}x3x{template}x{template}", (batch, 3, template, template))
        for i in range(count)
    ]
    region = gauss(f"{prefix}/search/{batch}x3x{search}x{search}", (batch, 3, search, search))
    return torch.from_numpy(np.stack(parts, axis=1)).to(DEVICE), torch.from_numpy(region).to(DEVICE)


def noise_floor(size: str, rule: str, what: str) -> tuple[float, float]:
    """Distance of the authors' float32 from their float64 for `what` in enc, logits: largest, relative L2.

    Of the set's own size if the folder has it, else of B256.
    """
    key = f"{what} fp32 vs fp64" + (" (maxabs, rel-l2)" if what == "enc" else "")
    facts = read_json(f"noise_floor_{size}.json") or {}
    largest, relative = facts.get(rule, {}).get(key, NOISE_B256[rule][what])
    return float(largest), float(relative)
