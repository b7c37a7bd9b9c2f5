"""The manifest of a checkpoint: the JSON file next to it, written last. A file without one is no checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from seqtrack import run_dir
from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_json_object
from seqtrack.checkpoints.side_files import Count, Digest, Scalar, Strict, field_problems
from seqtrack.parsing import short_repr


class Manifest(Strict):
    """One checkpoint.

    `step` counts optimizer steps of the whole run, `sample` the samples of the current epoch that were trained (0 at an
    epoch's end); `loss` and `iou` are the epoch's sample-weighted means. `parts` maps each state component to its
    digest; `parent_sha256` is the `sha256` of the checkpoint that training continued from, so that manifests form a
    hash chain.
    """

    format: Literal["seqtrack-checkpoint/1"] = "seqtrack-checkpoint/1"
    kind: Literal["epoch", "step", "imported"]
    epoch: Count
    step: Count
    sample: Count
    file: str
    bytes: Count
    sha256: Digest
    weights_sha256: Digest
    parts: dict[str, Digest]
    loss: float | None
    iou: float | None
    parent_sha256: Digest | None
    config_digest: Digest | None
    data_digest: Digest | None
    created: str
    phase: Count | None = None
    config: dict[str, Any] | None = None
    fingerprint: dict[str, Scalar] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    device: str | None = None
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def path(self) -> Path:
        return self._folder / self.file

    @property
    def manifest_path(self) -> Path:
        return run_dir.manifest_path(self.path)


def manifest_from(values: Mapping[str, object], path: Path) -> Manifest:
    """The manifest with the fields `values` in the file `path`.

    Raises:
        DamagedFileError: a field is missing, unknown or of another type, or the file has another name than expected.
    """
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise DamagedFileError(f"{path}: {'; '.join(field_problems(error))}", "checkpoint.manifest") from error
    if manifest.file != (expected := path.with_suffix(".safetensors").name):
        raise DamagedFileError(
            f"{path}: file is {short_repr(manifest.file)}, expected {expected}", "checkpoint.manifest"
        )
    manifest._folder = path.parent
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read one manifest; its checkpoint file is not opened.

    Raises:
        DamagedFileError: as for `manifest_from`.
        FileNotFoundError: there is none.
    """
    return manifest_from(read_json_object(path), path)
