"""One-pass evaluation: success, precision and normalised precision of a tracker's boxes.

Knows only NumPy arrays of boxes. The field's evaluators agree on everything but a few frames (those whose annotation is
not a box, absent ones, rows without a size) and the last bit of some thresholds: these are a `Convention`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.annotations import Boxes, Flags

Array = NDArray[np.float64]

SUCCESS_THRESHOLDS: Array = np.arange(21, dtype=np.float64) * 0.05  # IoU
PRECISION_THRESHOLDS: Array = np.arange(51, dtype=np.float64)  # pixels between the centres
NORM_PRECISION_THRESHOLDS: Array = np.arange(51, dtype=np.float64) / 100  # in widths and heights of the annotation


class Convention(NamedTuple):
    """How an evaluator counts what is not a box. A distance of -1 is below every threshold, a hit; an infinite one a
    miss. In success every such frame is a miss, and none leaves the denominator.

    Attributes:
        corner_too: an annotation needs x and y above 0 as well as w and h (files count pixels from 1).
        invalid_center: centre distance of a frame whose annotation is not a box; its normalised distance is -1.
        absent_norm: normalised distance of an absent frame; its centre distance is infinite.
        repairs_unannotated: rows without a size repeat the last box even where the annotation is NaN.
        thresholds: of success, (21,).
    """

    corner_too: bool
    invalid_center: float
    absent_norm: float = float("inf")
    repairs_unannotated: bool = False
    thresholds: Array = SUCCESS_THRESHOLDS


_STEPS = np.arange(21, dtype=np.float64)
# The MATLAB toolkits' range 0:0.05:1 is computed from both ends: at five thresholds the last bit is lower.
_MATLAB_RANGE: Array = np.where(_STEPS > 10, 1 - (20 - _STEPS) * 0.05, _STEPS * 0.05)
TOOLKIT = Convention(True, invalid_center=-1.0, repairs_unannotated=True)
MATLAB = TOOLKIT._replace(thresholds=_MATLAB_RANGE)  # of every toolkit, but LaSOT's numbers are given without
PYTRACKING = Convention(True, invalid_center=float("inf"))
AUTHORS = Convention(False, invalid_center=float("inf"))
CONVENTIONS = {"toolkit": TOOLKIT, "pytracking": PYTRACKING, "authors": AUTHORS}


class FrameErrors(NamedTuple):
    """Per frame, each (N,): IoU, centre distance in pixels, the same in annotation sizes.

    A frame that must not count has values that fail every threshold: IoU -1 and infinite distances.
    """

    iou: Array
    center: Array
    norm_center: Array


@dataclass(frozen=True)
class Scores:
    """Curves of one sequence, or their mean over sequences, and the metrics read from them.

    Attributes:
        success: (21,) fraction of frames above each IoU of `SUCCESS_THRESHOLDS`.
        precision, norm_precision: (51,) fraction of frames within each distance of their thresholds.
        mean_iou: percent, over the frames where the target is visible and annotated.
    """

    success: Array
    precision: Array
    norm_precision: Array
    mean_iou: float

    @property
    def auc(self) -> float:
        """Area under the success curve, percent."""
        return float(self.success.mean() * 100)

    def metrics(self) -> dict[str, float]:
        """Every metric of `METRICS`, in percent."""
        return {name: float(metric.read(self)) for name, metric in METRICS.items()}


class Metric(NamedTuple):
    """A column of the tables: its heading, and how it is read from scores, in percent."""

    heading: str
    read: Callable[[Scores], float]


# Tables, JSON, CSV, plots and the report show these, in this order; the thresholds are 0.50, 0.75, 20 px and 0.20.
METRICS: dict[str, Metric] = {
    "auc": Metric("AUC", lambda one: one.auc),
    "op50": Metric("OP50", lambda one: one.success[10] * 100),
    "op75": Metric("OP75", lambda one: one.success[15] * 100),
    "p20": Metric("P20", lambda one: one.precision[20] * 100),
    "p_norm": Metric("P_norm", lambda one: one.norm_precision[20] * 100),
    "mean_iou": Metric("mean IoU", lambda one: one.mean_iou),
}


def is_box(boxes_xywh: Boxes) -> Flags:
    """(N,) whether a predicted row is a box: four finite numbers, width and height above 0."""
    return np.asarray(np.isfinite(boxes_xywh).all(axis=1) & (boxes_xywh[:, 2:] > 0).all(axis=1))


def repair(predicted_xywh: Array, first_xywh: Array, keep: Flags | None = None) -> Array:
    """(N, 4) boxes as the toolkits score them: frame 1 has its annotation `first_xywh` (4,), which the tracker got, and
    a row that is not a box repeats the last one that is; `keep` (N,) marks rows that stay as they are."""
    boxes = np.array(predicted_xywh, dtype=np.float64)
    boxes[0] = first_xywh
    good = is_box(boxes) if keep is None else is_box(boxes) | (keep & np.isfinite(boxes).all(axis=1))
    repaired: Array = boxes[np.maximum.accumulate(np.where(good, np.arange(len(boxes)), 0))]
    return repaired


def iou_xywh(a_xywh: Array, b_xywh: Array) -> Array:
    """(N,) intersection over union of boxes (N, 4), 0 where both are empty."""
    low = np.maximum(a_xywh[:, :2], b_xywh[:, :2])
    high = np.minimum(a_xywh[:, :2] + a_xywh[:, 2:], b_xywh[:, :2] + b_xywh[:, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=1)
    union = a_xywh[:, 2:].prod(axis=1) + b_xywh[:, 2:].prod(axis=1) - overlap
    iou: Array = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def frame_errors(
    predicted_xywh: Array, annotated_xywh: Array, visible: Flags, *, convention: Convention = TOOLKIT
) -> FrameErrors:
    """Compare a tracker's boxes with the annotation, frame by frame.

    Args:
        predicted_xywh: (M, 4) pixels. Rows beyond the annotation are cut (some trackers have monkey-17's); frames
            without a row have a zero box, as in pytracking, which does not repeat the last one.
        annotated_xywh: (N, 4) pixels.
        visible: (N,) False where the target is fully occluded or out of view.
        convention: how frames count that have no box.

    Raises:
        ValueError: arrays of another shape, or no frame at all.
    """
    num_frames = len(annotated_xywh)
    shapes = predicted_xywh.shape, annotated_xywh.shape, visible.shape
    if shapes[1:] != ((num_frames, 4), (num_frames,)) or shapes[0][1:] != (4,) or not num_frames:
        raise ValueError(f"expected boxes (M, 4), annotations (N, 4), visible (N,), N > 0; found {shapes}")
    annotated = np.asarray(annotated_xywh, dtype=np.float64)
    rows = np.vstack((annotated[:1], predicted_xywh[1:num_frames]))  # frame 1 is given, even if there is no row
    keep = None if convention.repairs_unannotated else np.asarray(np.isnan(annotated[: len(rows)]).any(axis=1))
    predicted = np.zeros((num_frames, 4))
    predicted[: len(rows)] = repair(rows, annotated[0], keep)

    iou = iou_xywh(predicted, annotated)
    # The toolkit's boxes consist of whole pixels, first to last: their centre is x + (w - 1) / 2.
    centers = predicted[:, :2] + (predicted[:, 2:] - 1) / 2, annotated[:, :2] + (annotated[:, 2:] - 1) / 2
    center = np.sqrt(np.square(centers[0] - centers[1]).sum(axis=1))
    # Divide first, then subtract: distances of exactly 0.2 are common among integer boxes, and the other order rounds
    # some of them to the other side of the threshold (ATOM's P_norm would be 0.002 higher).
    with np.errstate(divide="ignore", invalid="ignore"):  # an annotation of width 0 is overwritten below
        norm_center = np.sqrt(np.square(centers[0] / annotated[:, 2:] - centers[1] / annotated[:, 2:]).sum(axis=1))

    invalid = ~(annotated[:, 0 if convention.corner_too else 2 :] > 0).all(axis=1)  # NaN is not above 0 either
    iou[invalid], center[invalid], norm_center[invalid] = -1.0, convention.invalid_center, -1.0
    iou[~visible], center[~visible], norm_center[~visible] = -1.0, np.inf, convention.absent_norm
    return FrameErrors(iou, center, norm_center)


def score(predicted_xywh: Array, annotated_xywh: Array, visible: Flags, *, convention: Convention = TOOLKIT) -> Scores:
    """Curves of one sequence; arguments and errors as `frame_errors`.

    Absent frames never count as hits but do count in the denominator: fractions are of all N frames.
    """
    errors = frame_errors(predicted_xywh, annotated_xywh, visible, convention=convention)
    num_frames = len(annotated_xywh)
    counted = errors.iou >= 0

    def within(distances: Array, thresholds: Array) -> Array:
        return np.searchsorted(np.sort(distances), thresholds, side="right") / num_frames

    return Scores(
        success=(num_frames - np.searchsorted(np.sort(errors.iou), convention.thresholds, side="right")) / num_frames,
        precision=within(errors.center, PRECISION_THRESHOLDS),
        norm_precision=within(errors.norm_center, NORM_PRECISION_THRESHOLDS),
        mean_iou=float(errors.iou[counted].mean() * 100) if counted.any() else 0.0,
    )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean over sequences, at least one, each with the same weight however long it is."""
    curves = {
        name: np.mean([getattr(one, name) for one in scores], axis=0)
        for name in ("success", "precision", "norm_precision")
    }
    return Scores(**curves, mean_iou=float(np.mean([one.mean_iou for one in scores])))
