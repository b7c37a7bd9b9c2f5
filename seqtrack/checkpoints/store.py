"""Checkpoints as a folder holds them: listed, verified, loaded, written and removed.

The folder is the truth; no list of it is kept. Listing and verifying need no torch.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.checkpoints.safetensors_io import (
    Contents,
    DamagedFileError,
    TensorBytes,
    read_checkpoint_file,
    sync_folder,
    write_checkpoint_file,
    write_json,
)
from seqtrack.checkpoints.side_files import Manifest as Manifest
from seqtrack.checkpoints.side_files import read_manifest as read_manifest
from seqtrack.errors import UserError
from seqtrack.run_dir import manifest_path, parse_checkpoint_name

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MODEL_PART = "model"
# Fields of a manifest that follow from the bytes of the file.
DERIVED_FIELDS = ("format", "file", "bytes", "sha256", "weights_sha256", "parts")
RESUMABLE = ("epoch", "step")


def list_checkpoints(folder: Path, *, kinds: Sequence[str] = (*RESUMABLE, "imported")) -> list[Manifest]:
    """The checkpoints of a run with a readable manifest, oldest first by step; others are skipped with a warning.

    Their bytes are not verified: see `verify_checkpoint`. Files of other names are not read: warnings show values.
    """
    found: list[Manifest] = []
    for path in sorted(folder.glob("*.json")):
        if parse_checkpoint_name(path.name) is None:
            continue
        try:
            found.append(read_manifest(path))
        except FileNotFoundError:
            continue  # moved aside between listing and reading
        except DamagedFileError as error:
            logger.warning("skipped: %s", error)
    return sorted((one for one in found if one.kind in kinds), key=lambda one: one.step)


def read_epochs(folder: Path) -> dict[int, Manifest]:
    """The manifests of a run's epochs, thin ones included; a DamagedFileError if one is unusable."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        kind, epoch = parse_checkpoint_name(path.name) or ("", 0)
        if kind == "ep":
            found[epoch] = read_manifest(path)
            if found[epoch].epoch != epoch:
                raise DamagedFileError(f"{path}: epoch is {found[epoch].epoch}", "checkpoint.manifest")
    return found


def verify_checkpoint(manifest: Manifest, keep: Callable[[str], bool] = lambda name: False) -> Contents:
    """Check that the file is the one the manifest describes, byte for byte, and that its state agrees with it; raises a
    DamagedFileError if not. `keep` tells whether the contents shall have the bytes of the tensor of this name."""
    path = manifest.path
    try:
        if (size := path.stat().st_size) != manifest.bytes:
            raise DamagedFileError(f"{path} has {size} bytes; its manifest has {manifest.bytes}")
        contents = read_checkpoint_file(path, keep)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error})") from error
    values = contents.values
    facts: dict[str, object] = {"sha256": contents.sha256, "parts": contents.parts}
    facts["weights_sha256"] = contents.parts.get(MODEL_PART)
    # Imported weights have no step.
    facts |= {name: values[name] for name in ("epoch", "step", "sample") if name in values}
    facts |= {"init_sha256": None, **values["lineage"]} if "lineage" in values else {}
    if "sample" in facts:
        facts["kind"] = "epoch" if facts["sample"] == 0 else "step"
    if facts.get("kind") == "epoch":
        with contextlib.suppress(LookupError, TypeError):  # no history: for `TrainState.restore` to refuse
            facts |= {name: values["history"][-1][name] for name in ("loss", "iou")}
    for name, found in facts.items():
        if getattr(manifest, name) != found:
            raise DamagedFileError(f"{path} has {name} {found!r}; its manifest has {getattr(manifest, name)!r}")
    return contents


def latest_valid(manifests: Iterable[Manifest]) -> Manifest | None:
    """The newest of these checkpoints that is valid; corrupt ones are skipped with a warning."""
    for manifest in sorted(manifests, key=lambda one: one.step, reverse=True):
        try:
            verify_checkpoint(manifest)
        except DamagedFileError as error:
            logger.warning("skipping corrupt checkpoint: %s", error)
            continue
        return manifest
    return None


def write_checkpoint(
    path: Path, tensors: Mapping[str, TensorBytes], values: Mapping[str, Any], *, describe: Mapping[str, object]
) -> Manifest:
    """Write the checkpoint file, then the manifest, each durably: a failure leaves no manifest of an incomplete file.

    Args:
        tensors: by their names "component/...".
        values: plain values by component; JSON-able without NaN.
        describe: the manifest's fields that do not follow from the bytes; of kind "thin", only the manifest is written.
    """
    written, size = write_checkpoint_file(None if describe["kind"] == "thin" else path, tensors, values)
    facts = {"file": path.name, "bytes": size, "sha256": written.sha256, "parts": written.parts}
    manifest = Manifest.model_validate({**facts, "weights_sha256": written.parts[MODEL_PART], **describe})
    write_json(manifest_path(path), manifest.model_dump())
    return read_manifest(manifest_path(path))


def remove_checkpoint(manifest: Manifest) -> None:
    """Remove a checkpoint, manifest first, so that none ever describes a missing file."""
    manifest.manifest_path.unlink(missing_ok=True)
    sync_folder(manifest.path.parent)
    manifest.path.unlink(missing_ok=True)


def checkpoints_to_delete(
    manifests: Sequence[Manifest], *, keep: int, is_safe: Callable[[Manifest], bool]
) -> list[Manifest]:
    """Of a folder's checkpoints, oldest first, those that are no longer needed.

    Checkpoints inside an epoch are deleted as soon as a newer checkpoint exists. Of the epochs' checkpoints the newest
    `keep` stay (all of them for 0), and so does the one of the best IoU; another one is deleted only if `is_safe`.
    """
    epochs = [item for item in manifests if item.kind == "epoch"]
    best = max(epochs, key=lambda item: item.iou if item.iou is not None else -1.0, default=None)
    old = {item.epoch for item in epochs[:-keep] if item is not best and is_safe(item)} if keep else set()
    return [
        item for item in manifests if (item.step < manifests[-1].step if item.kind == "step" else item.epoch in old)
    ]


def load_checkpoint(manifest: Manifest, *, part: str = "") -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """`verify_checkpoint`, and its tensors on the CPU and its plain values, in one pass over the file; with `part` only
    the tensors of this state component, by the names in it."""
    from seqtrack.checkpoints.tensors import to_tensor  # deferred: listing and verifying need no torch

    prefix = f"{part}/" if part else ""
    contents = verify_checkpoint(manifest, lambda name: name.startswith(prefix))
    path = manifest.path
    return {n.removeprefix(prefix): to_tensor(f"{path}: {n}", one) for n, one in contents.kept.items()}, contents.values


def load_weights(manifest: Manifest) -> dict[str, "Tensor"]:
    """The model's state dict, from `load_checkpoint`."""
    return load_checkpoint(manifest, part=MODEL_PART)[0]


def weights_digest(weights: Mapping[str, "Tensor"]) -> str:
    """What `weights_sha256` of a checkpoint with these weights would be."""
    from seqtrack.checkpoints.tensors import tensor_bytes  # deferred: listing and verifying need no torch

    tensors = {f"{MODEL_PART}/{name}": tensor_bytes(tensor) for name, tensor in weights.items()}
    return write_checkpoint_file(None, tensors, {})[0].parts[MODEL_PART]


def write_weights(path: Path, weights: Mapping[str, "Tensor"], *, describe: Mapping[str, object]) -> Manifest:
    """Write weights from elsewhere as a checkpoint of kind "imported": good for tracking, not for resuming."""
    from seqtrack.checkpoints.tensors import tensor_bytes  # deferred: listing and verifying need no torch

    tensors = {f"{MODEL_PART}/{name}": tensor_bytes(tensor) for name, tensor in weights.items()}
    return write_checkpoint(path, tensors, {}, describe={**describe, "kind": "imported"})


def thin_hint(manifests: Iterable[Manifest]) -> str:
    """How to get at those of these checkpoints of which a run kept the digests only; empty without any."""
    thin = [one.epoch for one in manifests if one.kind == "thin"]
    if not thin:
        return ""
    known, advice = ", ".join(map(str, thin)), f"`seqtrack restore --epoch {thin[0]}` recomputes it"
    return f"; TRAIN.CHECKPOINT_EPOCHS kept only the digests of {known}: {advice}"


def manifest_of(path: Path) -> Manifest:
    """The manifest of a checkpoint named by its file or its manifest; a UserError if there is none that can be used."""
    place = manifest_path(path)
    try:
        kind = recognize(path) if path != place else None
        if kind is not None and kind.name != SAFETENSORS:
            hint = "; `seqtrack import` makes a checkpoint of it" if kind.code == "file.torch" else ""
            raise UserError(f"{path} is {kind.name}, expected {SAFETENSORS}{hint}", code=kind.code)
        if (manifest := read_manifest(place)).kind == "thin":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(manifest.path))
        return manifest
    except FileNotFoundError as error:
        text = f"{error.filename} does not exist: a checkpoint is a .safetensors file with its .json next to it"
        with contextlib.suppress(FileNotFoundError, DamagedFileError):
            text += thin_hint([read_manifest(place)])
        raise UserError(text, code="checkpoint.missing") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", code="file.unreadable") from error
