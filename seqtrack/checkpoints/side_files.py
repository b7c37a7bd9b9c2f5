"""The JSON files of a run next to its checkpoint files, one model per file; every reader gets these objects.

A wrong type, an unknown, missing or duplicate field, NaN, or a document nested too deep is refused here, with file,
field, what was found and what was expected. A file with other fields has another version. Needs no torch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from seqtrack.checkpoints.safetensors_io import write_json
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, parse_json, short_repr

INVALID = "side_file.invalid"
# Further damaged lines are only counted.
SHOWN_PROBLEMS = 5

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Phase = Annotated[int, Field(ge=1, le=2)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A number that is not finite, such as the mean of nothing, becomes null: JSON has no NaN.
Measured = Annotated[
    float | None, BeforeValidator(lambda one: None if isinstance(one, float) and not math.isfinite(one) else one)
]
Scalar = str | int | float | bool | None
Fingerprint = dict[str, Scalar]
Figures = dict[str, float | None]
T = TypeVar("T")
Pair = Annotated[list[T], Field(min_length=2, max_length=2)]


class Strict(BaseModel):
    """No conversion between types, no missing or unknown field, finite numbers only."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StartRecord(Strict):
    """One start of a run: where it continued, on what machine, what had changed, and which guarantee holds."""

    step: Count
    epoch: Count
    source: str | None
    fingerprint: Fingerprint
    guarantee: str
    differences: list[str] = []
    config_changes: list[str] = []


class RunRecord(Strict):
    """run.json."""

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
    """environment.json."""

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
    """Sequences and frames of one class."""

    sequences: Count
    frames: Count
    visible: Count
    absent: Count
    missing: Count


class SourceRecord(Strict):
    """One data set of dataset.json."""

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
    """dataset.json."""

    format: Literal[2] = 2
    frames_covered_by: str
    sources: list[SourceRecord]
    digest: Digest


class _Record(Strict):
    """The fields that every line of metrics.jsonl has."""

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
    time_s: float
    elapsed_s: float
    samples_per_s: float
    data_wait_s: float
    data_wait_share: float


class IntervalRecord(_TrainingRecord):
    """What one log interval measured; `loss` and `iou` are the epoch's so far, `samples` those of a whole epoch."""

    type: Literal["interval"] = "interval"
    sample: Count
    interval_samples: Count
    interval_loss: float
    interval_iou: float
    eta_s: float


class EpochRecord(_TrainingRecord):
    """What one epoch measured."""

    type: Literal["epoch"] = "epoch"
    steps: Count
    max_memory_allocated: Count | None
    max_memory_reserved: Count | None


class ValidationRecord(_Record):
    """Scores on held-out sequences while training; percent, but for the last three."""

    type: Literal["validation"] = "validation"
    auc: Measured
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
    """One of the two runs of a certificate; None where a file is missing or invalid."""

    folder: str
    run: RunRecord | None
    environment: EnvironmentRecord | None


class CertifiedEpoch(Strict):
    """One epoch of a certificate; the lists have one entry per run."""

    epoch: Positive
    same: bool
    differences: list[str]
    sha256: Pair[str]
    weights_sha256: Pair[Digest]
    loss: Pair[float | None]
    iou: Pair[float | None]


class Certificate(Strict):
    """certificate.json: a verdict with its evidence."""

    format: Literal["seqtrack-certificate/1"] = "seqtrack-certificate/1"
    verdict: Literal["identical", "differs"]
    first_difference: str | None
    remarks: list[str]
    created: str
    runs: Pair[CertifiedRun]
    epochs: list[CertifiedEpoch]


class EvaluatedSequence(Strict):
    """One sequence of evaluation.json."""

    name: str
    class_name: str = Field(alias="class")
    frames: Count
    absent: Count


class EvaluatedTracker(Strict):
    """One tracker of evaluation.json: its metrics over all sequences, by class and by sequence, and its curves."""

    name: str
    kind: str
    epoch: Count | None
    source: dict[str, object]
    notes: list[str]
    mean: Figures
    classes: dict[str, Figures]
    sequences: dict[str, Figures]
    curves: dict[str, list[float]]


class EvaluationRecord(Strict):
    """evaluation.json."""

    format: Literal["seqtrack-evaluation/1"]
    protocol: str
    conditions: dict[str, object]
    sequences: list[EvaluatedSequence]
    thresholds: dict[str, list[float]]
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
    """audit.json: what an audit recomputed, and its verdict; `last_sha256` is that of the run's last checkpoint."""

    format: Literal["seqtrack-audit/1"] = "seqtrack-audit/1"
    verdict: AuditVerdict
    nonce: str
    phase: Phase
    first_epoch: Positive
    last_epoch: Positive
    config_digest: Digest
    data_digest: Digest
    last_sha256: Digest
    fingerprint: Fingerprint
    machine_differences: list[str]
    segments: list[AuditedSegment]
    steps: Count
    steps_of_run: Count
    seconds: float
    created: str


M = TypeVar("M", bound=BaseModel)


def read_side_file(path: Path, kind: type[M]) -> M | None:
    """The object in a file of `kind`, or None where there is no such file.

    Raises:
        UserError: `side_file.invalid`, the file is not what `kind` describes; every wrong field is named.
    """
    try:
        return kind.model_validate(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ParseError, ValidationError) as error:
        raise UserError(_problems(str(path), error)) from error


def write_side_file(path: Path, content: BaseModel) -> None:
    """Write such a file atomically."""
    write_json(path, content.model_dump())


@dataclass
class Metrics:
    """The records of a metrics.jsonl in order, and its damaged lines (each problem names file and line)."""

    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def of(self, kind: type[M]) -> list[M]:
        """The records of one kind."""
        return [record for record in self.records if isinstance(record, kind)]


def read_metrics(path: Path) -> Metrics:
    """All records of a metrics.jsonl; empty where there is no such file.

    Raises:
        UserError: the file cannot be read at all.
    """
    found = Metrics()
    for _, record in metrics_lines(path):
        if isinstance(record, Problem):
            found.problems.append(record)
        else:
            found.records.append(record)
    return found


def metrics_lines(path: Path) -> Iterator[tuple[bytes, Record | Problem]]:
    """Each line of a metrics.jsonl with its record, or with what is wrong with it.

    A damaged last line without a line feed is what a kill leaves, and is skipped.

    Raises:
        UserError: the file cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield line, _RECORD.validate_python(parse_json(line))
                except (ParseError, ValidationError) as error:
                    if line.endswith(b"\n"):
                        yield line, _problems(f"{path}, line {number}", error)[0]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(_problems(str(path), error)) from error


def shorten(problems: list[Problem]) -> list[Problem]:
    """The first few problems, and the number of the others."""
    more = len(problems) - SHOWN_PROBLEMS
    rest = [Problem(f"and {more} more lines like these", INVALID)] if more > 0 else []
    return [*problems[:SHOWN_PROBLEMS], *rest]


def _problems(place: str, error: OSError | ParseError | ValidationError) -> list[Problem]:
    texts = field_problems(error) if isinstance(error, ValidationError) else [f"cannot be read ({error})"]
    return [Problem(f"{place}: {text}", INVALID) for text in texts]


def field_problems(error: ValidationError) -> list[str]:
    """What is wrong with a document: where, what was expected, what was found."""
    return [
        f"{short_repr('.'.join(map(str, one['loc'])) or 'the document', 120)[1:-1]}: {one['msg']}, "
        f"found {short_repr(one['input'])}"
        for one in error.errors(include_url=False)
    ]
