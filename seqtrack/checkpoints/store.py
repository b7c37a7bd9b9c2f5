"""Checkpoints as a folder holds them: listed, verified, loaded, written and removed.

The folder is the truth; no list of it is kept. Listing and verifying need no torch; loading and writing weights import
it themselves.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.checkpoints.manifest import FORMAT as FORMAT
from seqtrack.checkpoints.manifest import Manifest as Manifest
from seqtrack.checkpoints.manifest import manifest_from as manifest_from
from seqtrack.checkpoints.manifest import read_manifest as read_manifest
from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.checkpoints.safetensors_io import (
    Contents,
    DamagedFileError,
    Header,
    TensorBytes,
    canonical_json,
    digest_components,
    read_checkpoint_file,
    sync_folder,
    write_checkpoint_file,
    write_json,
)
from seqtrack.errors import UserError
from seqtrack.parsing import ParseError, parse_json
from seqtrack.run_dir import manifest_path

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

STATE_KEY = "state"
MODEL_PART = "model"
KINDS = ("epoch", "step", "imported")
_NO_DIGEST = "0" * 64


def list_checkpoints(folder: Path, *, kinds: Iterable[str] = KINDS) -> list[Manifest]:
    """The checkpoints with a readable manifest, oldest first by step; others are skipped with a warning.

    Their bytes are not verified: see `verify_checkpoint`.
    """
    found: list[Manifest] = []
    wanted = tuple(kinds)
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            manifest = read_manifest(path)
        except FileNotFoundError:
            continue  # moved aside between listing and reading
        except DamagedFileError as error:
            logger.warning("skipped: %s", error)
            continue
        if manifest.kind in wanted:
            found.append(manifest)
    return sorted(found, key=_age)


def _age(manifest: Manifest) -> tuple[int, bool]:
    return manifest.step, manifest.kind == "epoch"


def verify_checkpoint(manifest: Manifest, *, read: Callable[[Path], Contents] = read_checkpoint_file) -> Header:
    """Check that the file is the one the manifest describes, byte for byte, and that its state agrees with it.

    Args:
        read: reads the whole file.

    Raises:
        DamagedFileError: it is missing, has another size or digest, is no safetensors file, or its state has another
            structure, step or component digests than expected.
    """
    path = manifest.path
    try:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise DamagedFileError(f"{path} has {size} bytes; its manifest has {manifest.bytes}")
        contents = read(path)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error})") from error
    if contents.sha256 != manifest.sha256:
        raise DamagedFileError(f"{path} has sha256 {contents.sha256}; its manifest has {manifest.sha256}")
    values = read_values(path, contents.header)
    for name, found in _facts(values).items():
        if getattr(manifest, name) != found:
            raise DamagedFileError(f"{manifest.manifest_path} has {name} {getattr(manifest, name)!r}; {path} {found!r}")
    parts = _with_values(contents.parts, values)
    if parts != manifest.parts or parts.get(MODEL_PART) != manifest.weights_sha256:
        differing = sorted(name for name in {*parts, *manifest.parts} if parts.get(name) != manifest.parts.get(name))
        raise DamagedFileError(
            f"{manifest.manifest_path} has other component digests than {path}: {', '.join(differing) or MODEL_PART}"
        )
    return contents.header


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's fields that follow from the state; none where the file holds weights only."""
    facts: dict[str, Any] = {name: values[name] for name in ("epoch", "step", "sample") if name in values}
    if "sample" in facts:
        facts["kind"] = "epoch" if facts["sample"] == 0 else "step"
    if facts.get("kind") == "epoch":
        try:
            last = values["history"]["epochs"][-1]
            facts |= {name: last[name] for name in ("loss", "iou")}
        except (LookupError, TypeError):
            pass  # no history: for `TrainState.restore` to refuse
    return facts


def latest_valid(
    manifests: Iterable[Manifest], *, verify: Callable[[Manifest], object] = verify_checkpoint
) -> Manifest | None:
    """The newest of these checkpoints that `verify` accepts; corrupt ones are skipped with a warning."""
    for manifest in sorted(manifests, key=_age, reverse=True):
        try:
            verify(manifest)
        except DamagedFileError as error:
            logger.warning("skipping corrupt checkpoint: %s", error)
            continue
        return manifest
    return None


def read_values(path: Path, header: Header) -> dict[str, Any]:
    """The state's plain values: what is not a tensor, kept as JSON in the file's metadata.

    Raises:
        DamagedFileError: there are none, or they are not a JSON object. `TrainState.restore` checks their structure.
    """
    if STATE_KEY not in header.metadata:
        raise DamagedFileError(f"{path}: holds no training state", "checkpoint.state")
    try:
        values = parse_json(header.metadata[STATE_KEY])
    except ParseError as error:
        raise DamagedFileError(f"{path}: the training state cannot be read ({error})", "checkpoint.state") from error
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path}: the training state is not an object", "checkpoint.state")
    return values


def component_digests(path: Path, header: Header) -> dict[str, str]:
    """The digest of every state component, from the bytes of the file: its tensors, its plain values, or both."""
    return _with_values(digest_components(path, header), read_values(path, header))


def _with_values(tensors: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    digests = {name: [digest] for name, digest in tensors.items()}
    for name, value in values.items():
        digests.setdefault(name, []).append(hashlib.sha256(canonical_json(value).encode()).hexdigest())
    return {
        name: parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
        for name, parts in sorted(digests.items())
    }


def write_checkpoint(
    path: Path, tensors: Mapping[str, TensorBytes], values: Mapping[str, Any], *, describe: Mapping[str, Any]
) -> Manifest:
    """Write the checkpoint file, then the manifest, each durably.

    Args:
        tensors: by their names "component/...".
        values: plain values by component; JSON-able without NaN.
        describe: the manifest's fields that do not follow from the bytes; validated before anything is written.

    Raises:
        OSError: as the file system reported it; no manifest of an incomplete file is left.
    """
    unknown = {"bytes": 0, "sha256": _NO_DIGEST, "weights_sha256": _NO_DIGEST, "parts": {}}
    fields = {"format": FORMAT, "file": path.name, **unknown, **describe}
    manifest = Manifest.model_validate(fields).in_folder(path.parent)
    written = write_checkpoint_file(path, tensors, {STATE_KEY: canonical_json(dict(values))})
    parts = _with_values(written.parts, values)
    manifest = manifest.model_copy(
        update={
            "bytes": written.size,
            "sha256": written.sha256,
            "weights_sha256": parts[MODEL_PART],
            "parts": parts,
        }
    )
    write_json(manifest.manifest_path, manifest.model_dump())
    return manifest


def remove_checkpoint(manifest: Manifest) -> None:
    """Remove a checkpoint, manifest first, so that none ever describes a missing file."""
    manifest.manifest_path.unlink(missing_ok=True)
    sync_folder(manifest.folder)
    manifest.path.unlink(missing_ok=True)


def load_tensors(manifest: Manifest, *, part: str | None = None) -> dict[str, "Tensor"]:
    """Verify a checkpoint and load its tensors on the CPU: all by their full names, or those of one state component
    by their names in it.

    Raises:
        DamagedFileError: as for `verify_checkpoint`.
    """
    return load_checkpoint(manifest, part=part)[0]


def load_checkpoint(manifest: Manifest, *, part: str | None = None) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors as `load_tensors` gives them, and the plain values, of one pass over the file.

    Raises:
        DamagedFileError: as for `verify_checkpoint`.
    """
    from seqtrack.checkpoints.tensors import memory_of, new_tensor  # deferred: listing and verifying need no torch

    tensors: dict[str, Tensor] = {}
    prefix = "" if part is None else f"{part}/"

    def place(header: Header) -> dict[str, memoryview]:
        for name, entry in header.entries.items():
            if name.startswith(prefix):
                tensors[name] = new_tensor(f"{manifest.path}: {name}", entry)
        return {name: memory_of(tensor) for name, tensor in tensors.items()}

    header = verify_checkpoint(manifest, read=lambda path: read_checkpoint_file(path, place))
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return named, read_values(manifest.path, header)


def manifest_of(path: Path) -> Manifest:
    """The manifest of a checkpoint named by its file or its manifest.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    place = manifest_path(path)
    try:
        kind = recognize(path) if path != place else None
        if kind is not None and kind.name != SAFETENSORS:
            hint = "; `seqtrack import` makes a checkpoint of it" if kind.code == "file.torch" else ""
            raise UserError(f"{path} is {kind.name}, expected {SAFETENSORS}{hint}", code=kind.code)
        return read_manifest(place)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} does not exist: a checkpoint is a .safetensors file with its .json next to it",
            code="checkpoint.missing",
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", code="file.unreadable") from error


def load_weights(manifest: Manifest) -> dict[str, "Tensor"]:
    """The model's state dict from a verified checkpoint, on the CPU.

    Raises:
        DamagedFileError: as for `verify_checkpoint`.
    """
    return load_tensors(manifest, part=MODEL_PART)


def write_weights(path: Path, weights: Mapping[str, "Tensor"], *, describe: Mapping[str, Any]) -> Manifest:
    """Write weights from elsewhere as a checkpoint of kind "imported": good for tracking, not for resuming."""
    from seqtrack.checkpoints.tensors import tensor_bytes  # deferred: listing and verifying need no torch

    tensors = {f"{MODEL_PART}/{name}": tensor_bytes(tensor) for name, tensor in weights.items()}
    return write_checkpoint(path, tensors, {}, describe={**describe, "kind": "imported"})
