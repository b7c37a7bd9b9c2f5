"""Checkpoints as a folder holds them: a container, and next to it a manifest that is written last.

The folder is the truth; no list of it is kept. A container without a manifest is no checkpoint. Listing and verifying
need no torch; `load_weights` and `write_weights` bring it in themselves.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.checkpoints.safetensors_io import (
    Contents,
    DamagedFileError,
    Header,
    TensorBytes,
    canonical_json,
    digest_components,
    read_checkpoint_file,
    read_json_object,
    sync_folder,
    write_checkpoint_file,
    write_json,
)
from seqtrack.errors import UserError
from seqtrack.parsing import ParseError, parse_json, short_repr

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT: Literal["seqtrack-checkpoint/1"] = "seqtrack-checkpoint/1"
STATE_KEY = "state"
MODEL_PART = "model"
KINDS = ("epoch", "step", "imported")
_ZERO_DIGEST = "0" * 64
_JSON_TYPES: dict[type, str] = {
    bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Manifest:
    """What is said of one checkpoint, next to it in JSON.

    `step` counts optimizer steps of the whole run, `sample` the samples of the current epoch that were trained (0 at an
    epoch's end); `loss` and `iou` are the epoch's sample-weighted means. `parts` maps each part of the state to its
    digest; `parent_sha256` is the `sha256` of the checkpoint that this one was trained on from, so that manifests form
    a chain.
    """

    format: Literal["seqtrack-checkpoint/1"]
    kind: Literal["epoch", "step", "imported"]
    epoch: Count
    step: Count
    sample: Count
    file: str
    bytes: Count
    sha256: Digest
    weights_sha256: Digest
    parts: dict[str, Digest]
    loss: Number | None
    iou: Number | None
    parent_sha256: Digest | None
    config_digest: Digest | None
    data_digest: Digest | None
    created: str
    phase: Count | None = None
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
        DamagedFileError: a field is missing, unknown or of another type, or the file is named otherwise than expected.
        FileNotFoundError: there is none.
    """
    return manifest_from(read_json_object(path), path)


def manifest_from(values: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest that a file's JSON tells, if it is one that `path` may hold.

    Raises:
        DamagedFileError: as for `read_manifest`.
    """
    try:
        manifest = Manifest(**{**values, "folder": values.get("folder", path.parent)})
    except ValidationError as error:
        raise DamagedFileError(f"{path}: {_explain(error)}", "checkpoint.manifest") from error
    if manifest.file != path.with_suffix(".safetensors").name:
        raise DamagedFileError(
            f"{path}: file is {short_repr(manifest.file)}, expected {path.stem}.safetensors", "checkpoint.manifest"
        )
    return manifest


def _explain(error: ValidationError) -> str:
    """Every problem of a validation: where, what was found, what was expected."""
    sentences = []
    for item in error.errors(include_url=False):
        place = ".".join(map(str, item["loc"]))
        if item["type"] in ("missing", "missing_argument"):
            sentences.append(f"{place} is missing")
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            sentences.append(f"{place} is unknown")
        else:
            found = item["input"]
            shown = f"{_JSON_TYPES.get(type(found), 'a value')}"
            if not isinstance(found, dict | list):
                shown += f" ({short_repr(found) if isinstance(found, str) else found})"
            expected = item["msg"].partition(" or instance of")[0].replace("dictionary", "object")
            sentences.append(f"{place} is {shown}: {expected[:1].lower()}{expected[1:]}")
    return "; ".join(sentences)


def list_checkpoints(folder: Path, *, kinds: Iterable[str] = KINDS) -> list[Manifest]:
    """The checkpoints whose manifests can be read, oldest first by step; others are skipped with a warning.

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
            logger.warning("skipped: %s", error)
            continue
        if manifest.kind in wanted:
            found.append(manifest)
    return sorted(found, key=lambda manifest: (manifest.step, manifest.kind == "epoch"))


def verify_checkpoint(manifest: Manifest, *, read: Callable[[Path], Contents] = read_checkpoint_file) -> Header:
    """Check that the container is the one the manifest describes, byte for byte, and that both tell the same.

    Args:
        read: reads the whole container.

    Returns:
        the container's head.

    Raises:
        DamagedFileError: it is missing, of another size, of another digest, not a container, its state has another
            structure, or the manifest tells another step or other digests of components.
    """
    path = manifest.path
    try:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise DamagedFileError(f"{path} has {size} bytes; its manifest says {manifest.bytes}")
        contents = read(path)
        if contents.sha256 != manifest.sha256:
            raise DamagedFileError(f"{path} has sha256 {contents.sha256}; its manifest says {manifest.sha256}")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error})") from error
    values = read_values(path, contents.header)
    for name, told in _facts(values).items():
        if getattr(manifest, name) != told:
            raise DamagedFileError(f"{manifest.manifest_path} says {name} {getattr(manifest, name)!r}; {path} {told!r}")
    parts = _with_values(contents.parts, values)
    if parts != manifest.parts or parts.get(MODEL_PART) != manifest.weights_sha256:
        differing = sorted(name for name in {*parts, *manifest.parts} if parts.get(name) != manifest.parts.get(name))
        raise DamagedFileError(
            f"{manifest.manifest_path} says other digests than {path} has: of {', '.join(differing) or MODEL_PART}"
        )
    return contents.header


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the state tells of the manifest's fields; nothing where the container holds weights only."""
    facts: dict[str, Any] = {name: values[name] for name in ("epoch", "step", "sample") if name in values}
    if "sample" in facts:
        facts["kind"] = "epoch" if facts["sample"] == 0 else "step"
    history = values.get("history")
    epochs = history.get("epochs") if isinstance(history, dict) else None
    last = epochs[-1] if isinstance(epochs, list) and epochs else None
    if facts.get("kind") == "epoch" and isinstance(last, dict):
        facts |= {name: last[name] for name in ("loss", "iou") if name in last}
    return facts


def latest_valid(
    manifests: Iterable[Manifest], *, verify: Callable[[Manifest], object] = verify_checkpoint
) -> Manifest | None:
    """The newest of these checkpoints that `verify` finds valid; damaged ones are skipped with a warning."""
    for manifest in sorted(manifests, key=lambda item: (item.step, item.kind == "epoch"), reverse=True):
        try:
            verify(manifest)
        except DamagedFileError as error:
            logger.warning("skipped a damaged checkpoint: %s", error)
            continue
        return manifest
    return None


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _ParameterGroup(_Part):
    names: list[str]
    lr: Number
    weight_decay: Number
    betas: list[Number]


class _Optimizer(_Part):
    groups: list[_ParameterGroup] = []
    state: dict[str, dict[str, Any]] = {}


class _Schedule(_Part):
    step_count: Count = 0
    kind: str = ""


class _PythonGenerator(_Part):
    version: int
    gauss: Number | None


class _NumpyGenerator(_Part):
    kind: str
    position: Annotated[int, Field(ge=0, le=624)]  # NumPy does not look, and would draw from beyond its table
    has_gauss: Annotated[int, Field(ge=0, le=1)]
    cached: Number


class _Generators(_Part):
    python: _PythonGenerator
    numpy: _NumpyGenerator
    cuda: dict[str, dict[str, Any]] = {}


class _History(_Part):
    epochs: list[dict[str, Number | list[Number] | None]] = []


class _State(_Part):
    """The structure of the state next to its tensors. That none is missing or too many is for the reader to say."""

    epoch: Count = 0
    step: Count = 0
    sample: Count = 0
    model: dict[str, Any] = {}
    optimizer: _Optimizer = _Optimizer()
    scheduler: _Schedule = _Schedule()
    scaler: dict[str, Number] = {}
    rng: dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], _Generators] = {}
    meters: dict[str, Number] = {}
    history: _History = _History()


def read_values(path: Path, header: Header) -> dict[str, Any]:
    """The small values of the state: what is not a tensor, kept as JSON in the container's metadata.

    Raises:
        DamagedFileError: there are none, or a component has another structure than a state has.
    """
    if STATE_KEY not in header.metadata:
        raise DamagedFileError(f"{path}: holds no training state", "checkpoint.state")
    try:
        values = parse_json(header.metadata[STATE_KEY])
        _State.model_validate(values)
    except ParseError as error:
        raise DamagedFileError(f"{path}: the training state cannot be read ({error})", "checkpoint.state") from error
    except ValidationError as error:
        raise DamagedFileError(f"{path}: the state component {_explain(error)}", "checkpoint.state") from error
    return dict(values)


def component_digests(path: Path, header: Header) -> dict[str, str]:
    """The digest of every part of a state, from the bytes of the container: tensors by part, and each small value."""
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
    """Write container, then manifest, each durably; return the manifest.

    Args:
        path: the container's final path.
        tensors: names "part/..." to bytes.
        values: the small values, by part; JSON-able without NaN.
        describe: the manifest's other fields (`Manifest`'s, less those that follow from the bytes); checked before
            anything is written, by the rules of whoever reads them.

    Raises:
        OSError: what the file system said; no manifest is left that speaks of a part.
    """
    manifest = Manifest(
        format=FORMAT,
        file=path.name,
        bytes=0,
        sha256=_ZERO_DIGEST,
        weights_sha256=_ZERO_DIGEST,
        parts={},
        folder=path.parent,
        **describe,
    )
    written = write_checkpoint_file(path, tensors, {STATE_KEY: canonical_json(dict(values))})
    parts = _with_values(written.parts, values)
    manifest = replace(
        manifest, bytes=written.size, sha256=written.sha256, weights_sha256=parts[MODEL_PART], parts=parts
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
        raise UserError(f"{error}; take another checkpoint, or fetch this one again", code=error.code) from error
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

    verify_checkpoint(manifest, read=lambda path: read_checkpoint_file(path, place))
    return tensors


def manifest_of(path: Path) -> Manifest:
    """The manifest of a checkpoint named by its container or its manifest.

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
    except DamagedFileError as error:
        raise UserError(str(error), code=error.code) from error


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
