"""Weights learned elsewhere, as the start of training: MAE or ImageNet ViTs, through timm's names and the Hub.

Downloads go to the Hub's cache (`HF_HOME`), once. What cannot be had is an error that says what to do: training never
starts from random weights because of a missing file. Knows encoders and files; the authors' own checkpoints are read in
`authors.py`.
"""

import hashlib
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
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.errors import Problem, UserError
from seqtrack.model.positions import resample_positions
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import CUSTOM_ENCODER, ModelSpec

log = logging.getLogger(__name__)

FILE_NAME = "model.safetensors"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# timm's names of what the authors start from.
PRETRAINED: dict[tuple[str, str], str] = {
    ("vit_base_patch16", "mae"): "vit_base_patch16_224.mae",
    ("vit_large_patch16", "mae"): "vit_large_patch16_224.mae",
    ("vit_huge_patch14", "mae"): "vit_huge_patch14_224.mae",
    ("vit_base_patch16", "default"): "vit_base_patch16_224.augreg_in1k",
    ("vit_large_patch16", "default"): "vit_large_patch16_224.augreg_in21k_ft_in1k",
    ("vit_huge_patch14", "default"): "vit_huge_patch14_224.orig_in21k",
}

# Parts of a ViT that joint encoding has no place for.
_LEFT_OUT = ("cls_token", "reg_token", "mask_token", "head.", "head_dist.", "dist_token", "pre_logits.", "attn_pool.")


def pretrained_name(spec: ModelSpec) -> str:
    """timm's name, tag included, of the weights that a spec asks for.

    Raises:
        UserError: there are none of that kind for this encoder.
    """
    known = PRETRAINED.get((spec.encoder_type, spec.pretrain_type))
    if known:
        return known
    if spec.encoder_type == CUSTOM_ENCODER or not timm.is_model(spec.encoder_type):
        raise UserError(
            f"MODEL.ENCODER.PRETRAIN_TYPE {spec.pretrain_type!r}: nobody has published weights for "
            f"{spec.encoder_type}; set it to scratch"
        )
    architecture, _, tag = spec.encoder_type.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if spec.pretrain_type == "default":
        wanted = spec.encoder_type if tag else next(iter(timm.list_pretrained(architecture)), "")
    else:
        wanted = f"{architecture}.mae"
    if wanted not in tagged:
        raise UserError(
            f"MODEL.ENCODER.PRETRAIN_TYPE {spec.pretrain_type!r}: timm knows no such weights for {architecture}; "
            f"it knows {', '.join(tagged) or 'none'}; set it to scratch, or TYPE to one of these with default"
        )
    return wanted


def load_pretrained(model: SeqTrack, spec: ModelSpec, *, source: Path | None = None) -> None:
    """Replace the encoder's weights by learned ones; decoder and head keep theirs.

    Args:
        model: as `build_model` gives it.
        spec: says which weights, by `encoder_type` and `pretrain_type`; nothing is done for "scratch".
        source: a safetensors file, or a folder with `model.safetensors`, instead of the Hub.

    Raises:
        UserError: the weights cannot be had, or do not fit the encoder.
    """
    if spec.pretrain_type == "scratch" and source is None:
        return
    path = _local_file(source) if source is not None else _from_hub(pretrained_name(spec))
    state = encoder_state(_read(path), spec)
    body = model.encoder.body
    own = body.state_dict()
    problems = compare_states(state, own, what=str(path), convertible=True)
    if problems:
        raise UserError(problems)
    body.load_state_dict(state)
    log.info("encoder weights: %s (%s)", path.name if source is not None else pretrained_name(spec), path)


def encoder_state(vit: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """A ViT's state dict as the encoder's: no class token, positions for search and template grid, patches resized.

    Args:
        vit: timm's names; one square position grid, with or without the positions of class and register tokens.
    """
    state = {name: value for name, value in vit.items() if not name.startswith(_LEFT_OUT)}
    positions = state.get("pos_embed")
    if positions is not None:
        # Whatever comes before the largest square belongs to class and register tokens.
        side = math.isqrt(positions.shape[1])
        grid = positions[:, positions.shape[1] - side * side :].float()
        parts = (resample_positions(grid, spec.search_grid), resample_positions(grid, spec.template_grid))
        state["pos_embed"] = torch.cat(parts, dim=1)
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.shape[-1] != spec.patch_size:
        state["patch_embed.proj.weight"] = resample_patch_embed(patches.float(), [spec.patch_size, spec.patch_size])
    for part in ("weight", "bias"):
        # Models that pool before their last norm keep it under another name.
        moved = state.pop(f"fc_norm.{part}", None)
        if moved is not None:
            state.setdefault(f"norm.{part}", moved)
    return state


class _Described(Protocol):
    """A tensor, or what a file says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype | None: ...


def compare_states(
    found: Mapping[str, _Described], expected: Mapping[str, _Described], *, what: str, convertible: bool = False
) -> list[Problem]:
    """Every name that is missing or not expected, and every shape and element type that differs; empty if all fits.

    A difference with one cause, such as one prefix before all names, is reported as that cause.

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
            return f"every name begins with {prefix!r}; save the state dict of the model inside"
    return (
        f"none of its {len(found)} names is one of this model's {len(expected)}: found {found[0]!r}, ..., expected "
        f"{expected[0]!r}, ..."
    )


def _local_file(source: Path) -> Path:
    path = source / FILE_NAME if source.is_dir() else source
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of pretrained weights")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kind = recognize(path)
        if kind.name != SAFETENSORS:
            raise UserError(f"{path} is {kind.name}; expected {SAFETENSORS}", code=kind.code)
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); remove it and fetch it again", code="file.damaged"
        ) from error
    return state


def _from_hub(name: str) -> Path:
    """The file of a timm model from the Hub's cache, fetched if it is not there."""
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
            f"the pretrained encoder {name} is not in the cache ({home}) and could not be fetched from the Hub "
            f"({repo}/{FILE_NAME}: {reason}). Connect to the network once; or copy {home} from a machine that has it "
            f"(`hf download {repo} {FILE_NAME}` fills it); or set MODEL.ENCODER.PRETRAIN_TYPE scratch to train without"
        ) from error
    _check_digest(path)
    return path


def _check_digest(path: Path) -> None:
    """The client stores a file under its sha256 but does not check that it is that file."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise UserError(f"{blob}: damaged in the cache (its sha256 is {digest.hexdigest()}); remove it and start again")
