"""The JSON files of a run next to its checkpoint files, one model per file; every reader gets these objects.

A wrong type, an unknown, missing or duplicate field, NaN, or a document nested too deep is refused here, with file,
field, what was found and what was expected. A file with other fields has another version. Needs no torch.
"""

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
)

from seqtrack.checkpoints.safetensors_io import DamagedFileError
from seqtrack.errors import Problem
from seqtrack.parsing import ParseError, parse_json, short_repr
from seqtrack.run_dir import manifest_path

INVALID = "side_file.invalid"
_SHOWN_PROBLEMS = 5  # further damaged lines of a metrics.jsonl are only counted

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, lt=1e10)]  # three centuries, which can be printed as hours
Phase = Annotated[int, Field(ge=1, le=2)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
# A number that is not finite, such as the mean of nothing, becomes null: JSON has no NaN.
Measured = Annotated[
    float | None, BeforeValidator(lambda one: None if isinstance(one, float) and not math.isfinite(one) else one)
]
Scalar = str | int | float | bool | None


def _counted(fingerprint: dict[str, Scalar]) -> dict[str, Scalar]:
    """An audit starts as many processes, with as many threads: of none it would confirm whatever they did not find."""
    for name in ("world_size", "threads"):
        found = fingerprint.get(name, 1)
        if type(found) is not int or not 1 <= found <= 4096:
            raise ValueError(f"{name} is {short_repr(found)}, expected a whole number from 1 to 4096")
    return fingerprint


Fingerprint = Annotated[dict[str, Scalar], AfterValidator(_counted)]


_FIGURES = frozenset({"auc", "op50", "op75", "p20", "p_norm", "mean_iou", "fps", "ms_a_frame"})
_CURVES = frozenset({"success", "precision", "norm_precision"})


def _with(names: frozenset[str]) -> AfterValidator:
    """A mapping that has these keys."""

    def check(found: dict[str, Any]) -> dict[str, Any]:
        if lacking := names - {*found}:
            raise ValueError(f"lacks {', '.join(sorted(lacking))}")
        return found

    return AfterValidator(check)


Figures = Annotated[dict[str, float | None], _with(_FIGURES)]
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Pair = Annotated[list[T], Field(min_length=2, max_length=2)]


class Strict(BaseModel):
    """No conversion between types, no missing or unknown field, finite numbers only."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StartRecord(Strict):
    step: Count
    epoch: Count
    source: str | None
    fingerprint: Fingerprint
    processes: Positive | None = None
    guarantee: str
    differences: list[str] = []
    config_changes: list[str] = []


class RunRecord(Strict):
    format: Literal["seqtrack-run/1"] = "seqtrack-run/1"
    state: Literal["running", "stopped", "complete"]
    phase: Phase
    config: str
    resume_epoch: Positive | None
    epochs: Positive
    config_digest: Digest
    data_digest: Digest
    starts: list[StartRecord]
    started: str
    updated: str


class EnvironmentRecord(Strict):
    commit: str
    lock_sha256: str
    versions: dict[str, str]
    fingerprint: Fingerprint
    platform: str
    cpu: str
    cpu_count: int | None
    memory_bytes: Count
    gpu_memory_bytes: Count | None


class ClassCounts(Strict):
    sequences: Count
    frames: Count
    visible: Count
    absent: Count
    missing: Count


class SourceRecord(Strict):
    name: str
    split: Literal["train", "test"]
    synthetic: bool
    sequences: Count
    frames: Count
    frame_bytes: Count
    classes: dict[str, ClassCounts]
    names: list[str]
    digest: Digest


class DatasetRecord(Strict):
    format: Literal[2] = 2
    frames_covered_by: str
    sources: list[SourceRecord]
    digest: Digest


class _Record(Strict):
    phase: Phase
    epoch: Count
    step: Count


class _TrainingRecord(_Record):
    loss: float
    iou: float
    samples: Positive
    lr: list[float]
    grad_norm: Measured
    skipped_steps: Count
    checksum: Checksum
    time_s: Seconds
    elapsed_s: Seconds
    samples_per_s: float
    data_wait_s: Seconds
    data_wait_share: float


class IntervalRecord(_TrainingRecord):
    """What one log interval measured; `loss` and `iou` are the epoch's so far, `samples` those of a whole epoch."""

    type: Literal["interval"] = "interval"
    sample: Count
    interval_samples: Count
    interval_loss: float
    interval_iou: float
    eta_s: Seconds


class EpochRecord(_TrainingRecord):
    type: Literal["epoch"] = "epoch"
    steps: Count
    max_memory_allocated: Count | None
    max_memory_reserved: Count | None


class ValidationRecord(_Record):
    type: Literal["validation"] = "validation"
    auc: Measured  # percent, as all but the last three
    op50: Measured
    op75: Measured
    p20: Measured
    p_norm: Measured
    mean_iou: Measured
    sequences: float
    frames: float
    fps: Measured


Record = IntervalRecord | EpochRecord | ValidationRecord
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="type")])


class CertifiedRun(Strict):
    folder: str
    run: RunRecord | None  # None where the file is missing or invalid
    environment: EnvironmentRecord | None


class CertifiedEpoch(Strict):
    epoch: Positive
    same: bool
    differences: list[str]
    sha256: Pair[str]
    weights_sha256: Pair[Digest]
    loss: Pair[float | None]
    iou: Pair[float | None]


class Certificate(Strict):
    format: Literal["seqtrack-certificate/1"] = "seqtrack-certificate/1"
    verdict: Literal["identical", "differs"]
    first_difference: str | None
    remarks: list[str]
    created: str
    runs: Pair[CertifiedRun]
    epochs: list[CertifiedEpoch]


class EvaluatedSequence(Strict):
    name: str
    class_name: str = Field(alias="class")
    frames: Count
    absent: Count


class EvaluatedTracker(Strict):
    name: str
    kind: str
    epoch: Count | None
    source: dict[str, object]
    notes: list[str]
    mean: Figures
    official: dict[str, float] = {}
    classes: dict[str, Figures]
    attributes: dict[str, Figures] = {}
    sequences: dict[str, Figures]
    curves: Annotated[dict[str, list[float]], _with(_CURVES)]


class EvaluationRecord(Strict):
    format: Literal["seqtrack-evaluation/1"]
    protocol: str
    conditions: dict[str, object]
    sequences: list[EvaluatedSequence]
    thresholds: dict[str, list[float]]
    attributes: dict[str, Count] = {}
    trackers: list[EvaluatedTracker]


class AuditedDifference(Strict):
    """The first quantity of a recomputed part that differs from the run: what the run recorded, and what came."""

    epoch: Count
    step: Count
    quantity: str
    recorded: str
    recomputed: str


AuditVerdict = Literal["confirmed", "refuted", "undecided"]


class AuditedSegment(Strict):
    """A part of a run that was trained again from the checkpoint of `start_epoch` (0: from the untrained state).

    `records` were compared, and the whole state after the epochs `states`.
    """

    epoch: Positive
    start_epoch: Count
    start_sha256: Digest | None
    steps: Count
    records: Count
    states: list[Positive]
    verdict: AuditVerdict
    difference: AuditedDifference | None
    largest_difference: float


class AuditRecord(Strict):
    """audit.json: what an audit recomputed, and its verdict; `last_sha256` is that of the run's last checkpoint,
    `metrics_sha256` that of its metrics.jsonl."""

    format: Literal["seqtrack-audit/1"] = "seqtrack-audit/1"
    verdict: AuditVerdict
    nonce: str
    phase: Phase
    first_epoch: Positive
    last_epoch: Positive
    config_digest: Digest
    data_digest: Digest
    last_sha256: Digest
    metrics_sha256: Digest
    fingerprint: Fingerprint
    machine_differences: list[str]
    segments: list[AuditedSegment]
    steps: Count
    steps_of_run: Count
    seconds: float
    created: str


class Manifest(Strict):
    """The manifest of a checkpoint, written last: a checkpoint file without one is none.

    `sample` counts the samples of the current epoch that were trained (0 at an epoch's end); `parts` are the digests of
    the state components; `parent_sha256` is that of the checkpoint that training continued from: a hash chain;
    `init_sha256` is that of the weights that the run began with, unless the seed alone determines them.
    """

    format: Literal["seqtrack-checkpoint/1"] = "seqtrack-checkpoint/1"
    kind: Literal["epoch", "thin", "step", "imported"]
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
    init_sha256: Digest | None = None
    created: str
    phase: Count | None = None
    config: dict[str, Any] | None = None
    fingerprint: Fingerprint = {}
    versions: dict[str, str] = {}
    device: str | None = None
    _folder: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self._folder / self.file

    @property
    def manifest_path(self) -> Path:
        return manifest_path(self.path)


def read_side_file(path: Path, kind: type[M], code: str = INVALID) -> M | None:
    """The object in a file of `kind`, or None without one; a DamagedFileError names every wrong field."""
    try:
        return kind.model_validate(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ParseError, ValidationError) as error:
        raise DamagedFileError(problems_of(path, error, code)) from error


def read_manifest(path: Path) -> Manifest:
    """Read one manifest; its checkpoint file is not opened.

    Raises:
        DamagedFileError: a field is missing, unknown or of another type, or names another file than the one next to it.
        FileNotFoundError: there is none.
    """
    if (manifest := read_side_file(path, Manifest, "checkpoint.manifest")) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    manifest._folder = path.parent
    if manifest.file != (expected := path.with_suffix(".safetensors").name):
        text = f"{path}: file is {short_repr(manifest.file)}, expected {expected}"
        raise DamagedFileError(text, "checkpoint.manifest")
    return manifest


class Metrics(NamedTuple):
    records: list[Record]
    problems: list[Problem]

    def of(self, kind: type[M]) -> list[M]:
        return [record for record in self.records if isinstance(record, kind)]


def read_metrics(path: Path) -> Metrics:
    """The records of a metrics.jsonl in order, and its damaged lines; of many the first few."""
    found = list(metrics_records(path))
    problems = [one for one in found if isinstance(one, Problem)]
    if (more := len(problems) - _SHOWN_PROBLEMS) > 0:
        problems[_SHOWN_PROBLEMS:] = [Problem(f"and {more} more lines like these", INVALID)]
    return Metrics([one for one in found if not isinstance(one, Problem)], problems)


def metrics_records(path: Path) -> Iterator[Record | Problem]:
    """The record of each line of a metrics.jsonl, or what is wrong with it; nothing where there is no such file.

    A damaged last line without a line feed is what a kill leaves, and is skipped.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield _RECORD.validate_python(parse_json(line))
                except (ParseError, ValidationError) as error:
                    if line.endswith(b"\n"):
                        yield problems_of(f"{path}, line {number}", error)[0]
    except FileNotFoundError:
        return
    except OSError as error:
        raise DamagedFileError(problems_of(path, error)) from error


def problems_of(place: object, error: OSError | ParseError | ValidationError, code: str = INVALID) -> list[Problem]:
    """What is wrong with a document: where, what was expected, what was found in a field that it should have.

    What else it holds is not shown: it may be another file, with secrets in it.
    """
    if not isinstance(error, ValidationError):
        return [Problem(f"{place}: cannot be read ({error})", code)]
    found = []
    for one in error.errors(include_url=False):
        name = short_repr(".".join(map(str, one["loc"])) or "the document", 120)[1:-1]
        known = one["loc"] and one["type"] not in ("missing", "extra_forbidden")
        text = f", found {short_repr(one['input'])}" if known else ""
        found.append(Problem(f"{place}: {name}: {one['msg']}{text}", code))
    return found
