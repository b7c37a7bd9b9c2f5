"""Checkpoints as a folder holds them: a container, and beside it a manifest that is written last.

The folder is the truth; no list of it is kept. A container without a manifest is no checkpoint. Listing and verifying
need no torch; `load_weights` and `write_weights` bring it in themselves.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.checkpoints.files import (
    DamagedFileError,
    Header,
    TensorBytes,
    canonical_json,
    digest_parts,
    read_container,
    read_header,
    read_json_object,
    sync_folder,
    write_container,
    write_json,
)
from seqtrack.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = "seqtrack-checkpoint/1"
STATE_KEY = "state"
MODEL_PART = "model"
KINDS = ("epoch", "step", "imported")


@dataclass(frozen=True)
class Manifest:
    """What is said of one checkpoint, beside it in JSON.

    `step` counts optimizer steps of the whole run, `sample` the samples of the current epoch that were trained (0 at an
    epoch's end); `loss` and `iou` are the epoch's sample-weighted means. `parts` maps each part of the state to its
    digest; `parent_sha256` is the `sha256` of the checkpoint that this one was trained on from, so that manifests form
    a chain.
    """

    format: str
    kind: str
    epoch: int
    step: int
    sample: int
    file: str
    bytes: int
    sha256: str
    weights_sha256: str
    parts: dict[str, str]
    loss: float | None
    iou: float | None
    parent_sha256: str | None
    config_digest: str | None
    data_digest: str | None
    created: str
    phase: int | None = None
    config: dict[str, Any] | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    folder: Path = field(default=Path(), compare=False)

    @property
    def path(self) -> Path:
        """The container this manifest speaks of."""
        return self.folder / self.file

    @property
    def manifest_path(self) -> Path:
        return manifest_path(self.path)

    def to_json(self) -> dict[str, Any]:
        """The manifest as its file holds it: every field but where it lies."""
        values = asdict(self)
        del values["folder"]
        return values


def manifest_path(container: Path) -> Path:
    return container.with_suffix(".json")


def epoch_name(epoch: int) -> str:
    """File name of the checkpoint after `epoch`; the authors' stem with the container's suffix."""
    return f"SEQTRACK_ep{epoch:04d}.safetensors"


def step_name(step: int) -> str:
    """File name of a checkpoint taken inside an epoch, after optimizer step `step` of the run."""
    return f"SEQTRACK_step{step:08d}.safetensors"


def read_manifest(path: Path) -> Manifest:
    """Read and check one manifest; its container is not opened.

    Raises:
        DamagedFileError: a key is missing, unknown or of another type, or the file is named otherwise than expected.
        FileNotFoundError: there is none.
    """
    values = read_json_object(path)
    known = {item.name: item for item in fields(Manifest) if item.name != "folder"}
    required = {name for name in known if name not in ("phase", "config", "fingerprint", "versions", "device")}
    missing, unknown = sorted(required - set(values)), sorted(set(values) - set(known))
    if values.get("format") != FORMAT:
        raise DamagedFileError(f"{path}: format is {values.get('format')!r:.80}, expected {FORMAT!r}")
    if missing or unknown:
        raise DamagedFileError(f"{path}: missing keys {missing}, unknown keys {unknown}")
    for name in ("epoch", "step", "sample", "bytes"):
        if type(values[name]) is not int or values[name] < 0:
            raise DamagedFileError(f"{path}: {name} is {values[name]!r:.80}, expected a whole number >= 0")
    for name in ("sha256", "weights_sha256"):
        if not _is_digest(values[name]):
            raise DamagedFileError(f"{path}: {name} is {values[name]!r:.80}, expected 64 hex digits")
    if not (values["parent_sha256"] is None or _is_digest(values["parent_sha256"])):
        raise DamagedFileError(f"{path}: parent_sha256 is {values['parent_sha256']!r:.80}, expected 64 hex digits")
    for name in ("loss", "iou"):
        if not (values[name] is None or type(values[name]) in (int, float)):
            raise DamagedFileError(f"{path}: {name} is {values[name]!r:.80}, expected a number or null")
    if values["kind"] not in KINDS:
        raise DamagedFileError(f"{path}: kind is {values['kind']!r:.80}, expected one of {', '.join(KINDS)}")
    if values["file"] != path.with_suffix(".safetensors").name:
        raise DamagedFileError(f"{path}: speaks of {values['file']!r:.80}, expected {path.stem}.safetensors")
    if not isinstance(values["parts"], dict) or not all(_is_digest(digest) for digest in values["parts"].values()):
        raise DamagedFileError(f"{path}: parts is not a table of digests")
    for name in ("config", "fingerprint", "versions"):
        if not isinstance(values.get(name) or {}, dict):
            raise DamagedFileError(f"{path}: {name} is not a table")
    if "fingerprint" in values and values["fingerprint"] is None:
        values["fingerprint"] = {}
    return Manifest(**{**values, "folder": path.parent})


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def list_checkpoints(folder: Path, *, kinds: Iterable[str] = KINDS) -> list[Manifest]:
    """The checkpoints whose manifests can be read, oldest first by step; others are passed over with a warning.

    Bytes are not verified here: see `verify_checkpoint`.
    """
    found: list[Manifest] = []
    wanted = tuple(kinds)
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            manifest = read_manifest(path)
        except FileNotFoundError:
            continue  # moved aside between listing and reading
        except DamagedFileError as error:
            logger.warning("passed over: %s", error)
            continue
        if manifest.kind in wanted:
            found.append(manifest)
    return sorted(found, key=lambda manifest: (manifest.step, manifest.kind == "epoch"))


def verify_checkpoint(manifest: Manifest, *, read: Callable[[Path], tuple[Header, str]] = read_container) -> Header:
    """Check that the container is the one the manifest describes, byte for byte, and that both tell the same.

    Args:
        read: reads the whole container, and returns its head and its sha256.

    Returns:
        the container's head.

    Raises:
        DamagedFileError: it is missing, of another size, of another digest, not a container, or of another step.
    """
    path = manifest.path
    try:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise DamagedFileError(f"{path} has {size} bytes; its manifest says {manifest.bytes}")
        header, digest = read(path)
        if digest != manifest.sha256:
            raise DamagedFileError(f"{path} has sha256 {digest}; its manifest says {manifest.sha256}")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error})") from error
    for name, told in _facts(path, header).items():
        if getattr(manifest, name) != told:
            raise DamagedFileError(f"{manifest.manifest_path} says {name} {getattr(manifest, name)!r}; {path} {told!r}")
    return header


def _facts(path: Path, header: Header) -> dict[str, Any]:
    """What the container itself tells of the manifest's fields; nothing where it holds weights only."""
    values = read_values(path, header)
    facts: dict[str, Any] = {name: values[name] for name in ("epoch", "step", "sample") if name in values}
    if "sample" in facts:
        facts["kind"] = "epoch" if facts["sample"] == 0 else "step"
    history = values.get("history")
    epochs = history.get("epochs") if isinstance(history, dict) else None
    last = epochs[-1] if isinstance(epochs, list) and epochs else None
    if facts.get("kind") == "epoch" and isinstance(last, dict):
        facts |= {name: last[name] for name in ("loss", "iou") if name in last}
    return facts


def newest_sound(
    manifests: Iterable[Manifest], *, verify: Callable[[Manifest], object] = verify_checkpoint
) -> Manifest | None:
    """The newest of these checkpoints that `verify` finds sound; damaged ones are passed over with a warning."""
    for manifest in sorted(manifests, key=lambda item: (item.step, item.kind == "epoch"), reverse=True):
        try:
            verify(manifest)
        except DamagedFileError as error:
            logger.warning("passed over a damaged checkpoint: %s", error)
            continue
        return manifest
    return None


def read_values(path: Path, header: Header) -> dict[str, Any]:
    """The small values of the state: what is not a tensor, kept as JSON in the container's metadata."""
    try:
        values = json.loads(header.metadata[STATE_KEY])
    except (KeyError, ValueError) as error:
        raise DamagedFileError(f"{path}: holds no training state ({error!r})") from error
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path}: the training state is not a table")
    return values


def part_digests(path: Path, header: Header) -> dict[str, str]:
    """The digest of every part of a state, from the bytes of the container: tensors by part, and each small value."""
    digests = {name: [digest] for name, digest in digest_parts(path, header).items()}
    for name, value in read_values(path, header).items():
        digests.setdefault(name, []).append(hashlib.sha256(canonical_json(value).encode()).hexdigest())
    return {
        name: parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
        for name, parts in sorted(digests.items())
    }


def write_checkpoint(
    path: Path, tensors: Mapping[str, TensorBytes], values: Mapping[str, Any], *, describe: Mapping[str, Any]
) -> Manifest:
    """Write container, then manifest, each durably; return the manifest.

    Args:
        path: the container's final path.
        tensors: names "part/..." to bytes.
        values: the small values, by part; JSON-able without NaN.
        describe: the manifest's other fields (`Manifest`'s, less those that follow from the bytes).

    Raises:
        OSError: what the file system said; no manifest is left that speaks of a part.
    """
    size, digest = write_container(path, tensors, {STATE_KEY: canonical_json(dict(values))})
    parts = part_digests(path, read_header(path))
    manifest = Manifest(
        format=FORMAT,
        file=path.name,
        bytes=size,
        sha256=digest,
        weights_sha256=parts[MODEL_PART],
        parts=parts,
        folder=path.parent,
        **describe,
    )
    write_json(manifest.manifest_path, manifest.to_json())
    return manifest


def remove_checkpoint(manifest: Manifest) -> None:
    """Take a checkpoint away, manifest first, so that none ever speaks of a file that is gone."""
    manifest.manifest_path.unlink(missing_ok=True)
    sync_folder(manifest.folder)
    manifest.path.unlink(missing_ok=True)


def load_tensors(manifest: Manifest, *, part: str | None = None) -> dict[str, "Tensor"]:
    """The tensors of a verified checkpoint, on the CPU, by their full names or, for one part, without its prefix.

    Raises:
        UserError: the file is not the one its manifest describes.
    """
    try:
        tensors = read_tensors(manifest, part=part)
    except DamagedFileError as error:
        raise UserError(f"{error}; take another checkpoint, or fetch this one again") from error
    skip = 0 if part is None else len(part) + 1
    return {name[skip:]: tensor for name, tensor in tensors.items()}


def read_tensors(manifest: Manifest, *, part: str | None = None) -> dict[str, "Tensor"]:
    """Verify a checkpoint as `verify_checkpoint` does and keep what was read for it, all or one part, by full names.

    Raises:
        DamagedFileError: as for `verify_checkpoint`.
    """
    from seqtrack.checkpoints.tensors import new_tensor, writable_bytes

    tensors: dict[str, Tensor] = {}

    def place(header: Header) -> dict[str, memoryview]:
        for name, entry in header.entries.items():
            if part is None or name.startswith(f"{part}/"):
                tensors[name] = new_tensor(f"{manifest.path}: {name}", entry)
        return {name: writable_bytes(tensor) for name, tensor in tensors.items()}

    verify_checkpoint(manifest, read=lambda path: read_container(path, place))
    return tensors


def manifest_of(path: Path) -> Manifest:
    """The manifest of a checkpoint named by its container or its manifest.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    place = manifest_path(path)
    try:
        return read_manifest(place)
    except FileNotFoundError as error:
        raise UserError(
            f"{place} does not exist: a checkpoint is a .safetensors file with its .json beside it"
        ) from error
    except DamagedFileError as error:
        raise UserError(str(error)) from error


def load_weights(manifest: Manifest) -> dict[str, "Tensor"]:
    """The model's state dict from a verified checkpoint, on the CPU.

    Raises:
        UserError: the file is not the one its manifest describes.
    """
    return load_tensors(manifest, part=MODEL_PART)


def write_weights(path: Path, weights: Mapping[str, "Tensor"], *, describe: Mapping[str, Any]) -> Manifest:
    """Write weights from elsewhere as a checkpoint of kind "imported": good for tracking, not for resuming."""
    from seqtrack.checkpoints.tensors import tensor_bytes

    tensors = {f"{MODEL_PART}/{name}": tensor_bytes(tensor) for name, tensor in weights.items()}
    return write_checkpoint(path, tensors, {}, describe={**describe, "kind": "imported"})
