"""Pretrained encoder weights: MAE or ImageNet ViTs, by timm's names, from the Hub.

Downloads are cached in `HF_HOME`. Missing weights are an error: training never starts from random weights because of a
missing file. `authors.py` reads the authors' own checkpoints.
"""

import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.errors import Problem, UserError
from seqtrack.model.positions import resample_positions
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import CUSTOM_ENCODER, ModelSpec

log = logging.getLogger(__name__)

FILE_NAME = "model.safetensors"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# timm's names of the weights that the authors start from.
PRETRAINED: dict[tuple[str, str], str] = {
    ("vit_base_patch16", "mae"): "vit_base_patch16_224.mae",
    ("vit_large_patch16", "mae"): "vit_large_patch16_224.mae",
    ("vit_huge_patch14", "mae"): "vit_huge_patch14_224.mae",
    ("vit_base_patch16", "default"): "vit_base_patch16_224.augreg_in1k",
    ("vit_large_patch16", "default"): "vit_large_patch16_224.augreg_in21k_ft_in1k",
    ("vit_huge_patch14", "default"): "vit_huge_patch14_224.orig_in21k",
}

# Parts of a ViT that joint encoding does not use.
_LEFT_OUT = ("cls_token", "reg_token", "mask_token", "head.", "head_dist.", "dist_token", "pre_logits.", "attn_pool.")


def pretrained_name(spec: ModelSpec) -> str:
    """timm's name, with tag, of the weights for a spec.

    Raises:
        UserError: none have been published for this encoder.
    """
    known = PRETRAINED.get((spec.encoder_type, spec.pretrain_type))
    if known:
        return known
    if spec.encoder_type == CUSTOM_ENCODER or not timm.is_model(spec.encoder_type):
        raise UserError(
            f"MODEL.ENCODER.PRETRAIN_TYPE {spec.pretrain_type!r}: no weights are published for {spec.encoder_type}; "
            "set it to scratch",
            code="weights.not_published",
        )
    architecture, _, tag = spec.encoder_type.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if spec.pretrain_type == "default":
        wanted = spec.encoder_type if tag else next(iter(timm.list_pretrained(architecture)), "")
    else:
        wanted = f"{architecture}.mae"
    if wanted not in tagged:
        raise UserError(
            f"MODEL.ENCODER.PRETRAIN_TYPE {spec.pretrain_type!r}: timm has no such weights for {architecture}, only "
            f"{', '.join(tagged) or 'none'}; set it to scratch, or TYPE to one of these with default",
            code="weights.not_published",
        )
    return wanted


def load_pretrained(model: SeqTrack, spec: ModelSpec, *, source: Path | None = None) -> None:
    """Load pretrained weights into the encoder; decoder and head are unchanged.

    Args:
        spec: chooses the weights by `encoder_type` and `pretrain_type`; nothing is done for "scratch".
        source: a safetensors file, or a folder with `model.safetensors`, instead of the Hub.

    Raises:
        UserError: the weights are not available, or do not fit the encoder.
    """
    if spec.pretrain_type == "scratch" and source is None:
        return
    if source is None:
        path = _from_hub(pretrained_name(spec))
    else:
        path = source / FILE_NAME if source.is_dir() else source
    state = encoder_state(_read(path), spec)
    body = model.encoder.body
    own = body.state_dict()
    problems = compare_states(state, own, what=str(path), convertible=True)
    if problems:
        raise UserError(problems)
    body.load_state_dict(state)
    log.info("encoder weights: %s (%s)", path.name if source is not None else pretrained_name(spec), path)


def encoder_state(vit: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Convert a ViT's state dict to the encoder's: no class token, positions of both grids, resampled patches.

    Args:
        vit: by timm's names; one square position grid, with or without the positions of class and register tokens.
    """
    state = {name: value for name, value in vit.items() if not name.startswith(_LEFT_OUT)}
    positions = state.get("pos_embed")
    if positions is not None:
        # The positions before the largest square are those of class and register tokens.
        side = math.isqrt(positions.shape[1])
        grid = positions[:, positions.shape[1] - side * side :].float()
        parts = (resample_positions(grid, spec.search_grid), resample_positions(grid, spec.template_grid))
        state["pos_embed"] = torch.cat(parts, dim=1)
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.shape[-1] != spec.patch_size:
        state["patch_embed.proj.weight"] = resample_patch_embed(patches.float(), [spec.patch_size, spec.patch_size])
    for part in ("weight", "bias"):
        # Models that pool before their last norm use another name for it.
        moved = state.pop(f"fc_norm.{part}", None)
        if moved is not None:
            state.setdefault(f"norm.{part}", moved)
    return state


class _Described(Protocol):
    """A tensor, or its description in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype | None: ...


def compare_states(
    found: Mapping[str, _Described], expected: Mapping[str, _Described], *, what: str, convertible: bool = False
) -> list[Problem]:
    """Compare names, shapes and element types; empty if all are as expected.

    A difference with a single cause, such as a prefix of all names, is reported as that cause.

    Args:
        convertible: floating-point types may differ from each other.
    """
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    if expected and found and len(missing) == len(expected):
        return [Problem(f"{what}: {_common_cause(sorted(found), sorted(expected))}", "weights.other_model")]
    problems = []
    if missing:
        problems.append(Problem(f"{what}: {len(missing)} missing: {', '.join(missing)}", "weights.missing"))
    if unexpected:
        problems.append(Problem(f"{what}: {len(unexpected)} unexpected: {', '.join(unexpected)}", "weights.unexpected"))
    types: dict[tuple[torch.dtype | None, torch.dtype | None], list[str]] = defaultdict(list)
    for name in sorted(set(found) & set(expected)):
        shapes = [*found[name].shape], [*expected[name].shape]
        if shapes[0] != shapes[1]:
            problems.append(Problem(f"{what}: {name} has shape {shapes[0]}, expected {shapes[1]}", "weights.shape"))
        pair = found[name].dtype, expected[name].dtype
        if pair[0] != pair[1] and not (convertible and all(dtype in _FLOATS for dtype in pair)):
            types[pair].append(name)
    for (is_type, wanted), names in types.items():
        shown = f"{what}: {len(names)} tensors are {is_type or 'of an unknown type'}, expected {wanted}"
        problems.append(Problem(f"{shown}: {', '.join(names)}", "weights.dtype"))
    return problems


def _common_cause(found: list[str], expected: list[str]) -> str:
    names, prefix = set(found), ""
    while all("." in name for name in names) and len({name.partition(".")[0] for name in names}) == 1:
        prefix += f"{next(iter(names)).partition('.')[0]}."
        names = {name.partition(".")[2] for name in names}
        if set(expected) <= names:
            return f"every name starts with {prefix!r}; save the state dict of the inner model"
    return (
        f"none of its {len(found)} names is one of this model's {len(expected)}: found {found[0]!r}, ..., expected "
        f"{expected[0]!r}, ..."
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        kind = recognize(path)
        if kind.name != SAFETENSORS:
            raise UserError(f"{path} is {kind.name}; expected {SAFETENSORS}", code=kind.code)
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of pretrained weights", code="file.unreadable") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); remove it and fetch it again", code="file.damaged"
        ) from error
    return state


def _from_hub(name: str) -> Path:
    """The file of a timm model in the Hub's cache, downloaded if it is missing."""
    # Imported here: only pretrained weights need the Hub's client.
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = timm.models.get_pretrained_cfg(name)
    repo = str(config.hf_hub_id) if config is not None and config.hf_hub_id else f"timm/{name}"
    if repo.endswith("/"):
        repo += name
    try:
        path = Path(hf_hub_download(repo, FILE_NAME))
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise UserError(
            f"the pretrained encoder {name} is not in the cache ({home}) and could not be downloaded from the Hub "
            f"({repo}/{FILE_NAME}: {reason}). Connect to the network once; or copy {home} from a machine that has it "
            f"(`hf download {repo} {FILE_NAME}` fills it); or train without it: MODEL.ENCODER.PRETRAIN_TYPE scratch",
            code="weights.not_available",
        ) from error
    blob = path.resolve()
    # The client names a blob by its sha256 but does not verify the content of a cached one.
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and (digest := sha256_file(blob)) != blob.name:
        raise UserError(
            f"{blob}: corrupt in the cache (its sha256 is {digest}); remove it and start again", code="file.damaged"
        )
    return path
