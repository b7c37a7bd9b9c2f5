"""Pretrained encoder weights: MAE or ImageNet ViTs, by timm's names, from the Hub.

Downloads are cached in `HF_HOME`. Missing weights are an error: training never starts from random weights because of a
missing file. `authors.py` reads the authors' own checkpoints.
"""

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.errors import Problem, UserError
from seqtrack.model.foreign_weights import ForeignTensor
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec

log = logging.getLogger(__name__)

FILE_NAME = "model.safetensors"
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

# timm's tags of the ImageNet weights that the authors start from; those of MAE are tagged "mae".
IMAGENET_TAGS = {
    "vit_base_patch16": "augreg_in1k",
    "vit_large_patch16": "augreg_in21k_ft_in1k",
    "vit_huge_patch14": "orig_in21k",
}

# Parts of a ViT that joint encoding does not use.
_LEFT_OUT = ("cls_token", "reg_token", "mask_token", "head.", "head_dist.", "dist_token", "pre_logits.", "attn_pool.")


def pretrained_name(spec: ModelSpec) -> str:
    """timm's name, with tag, of the weights for a spec.

    Raises:
        UserError: none have been published for this encoder.
    """
    architecture, _, tag = spec.encoder_type.partition(".")
    if architecture in IMAGENET_TAGS:
        architecture, tag = f"{architecture}_224", IMAGENET_TAGS[architecture]
    published = timm.list_pretrained(f"{architecture}.*")
    wanted = f"{architecture}.{tag}" if tag else next(iter(published), "")
    wanted = f"{architecture}.mae" if spec.pretrain_type == "mae" else wanted
    if wanted not in published:
        raise UserError(
            f"MODEL.ENCODER.PRETRAIN_TYPE {spec.pretrain_type!r}: no such weights are published for {architecture}, "
            f"only {', '.join(published) or 'none'}; set it to scratch, or TYPE to one of these with default",
            code="weights.not_published",
        )
    return wanted


def load_pretrained(model: SeqTrack, *, source: Path | None = None) -> None:
    """Load the pretrained weights that the model's spec names into its encoder; decoder and head are unchanged.

    Args:
        source: a safetensors file instead of the Hub's.

    Raises:
        UserError: the weights are not available, or do not fit the encoder.
    """
    path = source or _from_hub(pretrained_name(model.spec))
    try:
        kind = recognize(path)
        if kind.name != SAFETENSORS:
            raise UserError(f"{path} is {kind.name}; expected {SAFETENSORS}", code=kind.code)
        state = _encoder_state(load_file(path), model)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); remove it and fetch it again", code="file.damaged") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", code="file.unreadable") from error
    if problems := compare_states(state, model.encoder.body.state_dict(), what=str(path), convertible=True):
        raise UserError(problems)
    model.encoder.body.load_state_dict(state)
    log.info("encoder weights: %s", path)


def _encoder_state(vit: Mapping[str, Tensor], model: SeqTrack) -> dict[str, Tensor]:
    """Convert a ViT's state dict (timm's names) to the encoder's: no class token, positions of both grids, resampled
    patches."""
    # Models that pool before their last norm call it fc_norm.
    state = {re.sub("^fc_norm", "norm", name): value for name, value in vit.items() if not name.startswith(_LEFT_OUT)}
    spec = model.spec
    if (positions := state.get("pos_embed")) is not None:
        # The positions before the largest square are those of class and register tokens.
        side = math.isqrt(positions.shape[1])
        grid = positions[:, positions.shape[1] - side * side :].float()
        parts = (resample_positions(grid, spec.search_grid), resample_positions(grid, spec.template_grid))
        state["pos_embed"] = torch.cat(parts, dim=1)
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.shape[-1] != spec.patch_size:
        state["patch_embed.proj.weight"] = resample_patch_embed(patches.float(), [spec.patch_size, spec.patch_size])
    return state


def resample_positions(table: Tensor, grid: int) -> Tensor:
    """Resample a learned square table, (1, side * side, C) row-major without class token, to (1, grid * grid, C):
    bicubic with aligned corners, as the authors do."""
    side = math.isqrt(table.shape[1])
    if side == grid:
        return table
    image = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    larger: Tensor = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=True)
    return larger.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


def compare_states(
    found: Mapping[str, Tensor | ForeignTensor], expected: Mapping[str, Tensor], *, what: str, convertible: bool = False
) -> list[Problem]:
    """Compare names, shapes and element types; empty if all are as expected.

    Args:
        convertible: floating-point types may differ from each other.
    """
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if expected and found and len(missing) == len(expected):
        text = f"{what}: no name is this model's: found {unexpected[0]!r}, ..., expected {missing[0]!r}, ..."
        return [Problem(text, "weights.other_model")]
    problems = [
        Problem(f"{what}: {len(names)} {kind}: {', '.join(names)}", f"weights.{kind}")
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    for name in sorted(set(found) & set(expected)):
        mine, theirs = found[name], expected[name]
        if [*mine.shape] != [*theirs.shape]:
            text = f"{what}: {name} has shape {[*mine.shape]}, expected {[*theirs.shape]}"
            problems.append(Problem(text, "weights.shape"))
        if mine.dtype != theirs.dtype and not (convertible and {mine.dtype, theirs.dtype} <= _FLOATS):
            text = f"{what}: {name} is {mine.dtype or 'of an unknown type'}, expected {theirs.dtype}"
            problems.append(Problem(text, "weights.dtype"))
    return problems


def _from_hub(name: str) -> Path:
    """The file of a timm model in the Hub's cache, downloaded if it is missing."""
    import httpx2  # start-up time: only pretrained weights need the Hub's client
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache  # as above
    from huggingface_hub.errors import HfHubHTTPError  # as above

    config = timm.models.get_pretrained_cfg(name)
    repo = str(config.hf_hub_id or "timm/") if config else "timm/"
    repo += name if repo.endswith("/") else ""
    try:
        cached = try_to_load_from_cache(repo, FILE_NAME)
        if not isinstance(cached, str):
            get_session().head(hf_hub_url(repo, FILE_NAME))  # fails at once without network; the download after 25 s
            cached = hf_hub_download(repo, FILE_NAME)
        path = Path(cached).resolve()
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:  # LocalEntryNotFoundError is an OSError
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise UserError(
            f"the pretrained encoder {name} is not in the cache ({home}) and could not be downloaded from the Hub "
            f"({repo}/{FILE_NAME}: {str(error).strip().splitlines()[0]}). Connect to the network once; or copy {home} "
            f"from a machine that has it (`hf download {repo} {FILE_NAME}` fills it); or train without it: "
            "MODEL.ENCODER.PRETRAIN_TYPE scratch",
            code="weights.not_available",
        ) from error
    # The client names a blob by its sha256 but does not verify the content of a cached one.
    if re.fullmatch(r"[0-9a-f]{64}", path.name) and (digest := sha256_file(path)) != path.name:
        raise UserError(f"{path}: corrupt (its sha256 is {digest}); remove it and start again", code="file.damaged")
    return path
