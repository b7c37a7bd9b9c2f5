"""Training curves in bounded memory: what a plot can show of a run of any length.

A plot is about 900 pixels wide. Neighbouring points are merged into buckets that keep their lowest and highest value,
so that the drawn line covers what the line through all points would cover. Needs no torch and no matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from seqtrack.checkpoints.side_files import EpochRecord, IntervalRecord, Record

LIMIT = 2000  # buckets of a curve; even, because two become one
NAMES = ("loss", "iou")

Bucket = tuple[float, float, float]  # position of its first point, lowest and highest value


@dataclass
class Curve:
    """Points in order, in at most `LIMIT` buckets of `stride` points each."""

    buckets: list[Bucket] = field(default_factory=list)
    stride: int = 1
    _points: int = 0

    def add(self, position: float, value: float) -> None:
        """One more point, at or after the last one."""
        if self._points == LIMIT * self.stride:
            pairs = zip(self.buckets[::2], self.buckets[1::2], strict=True)
            self.buckets = [(a[0], min(a[1], b[1]), max(a[2], b[2])) for a, b in pairs]
            self.stride *= 2
        if self._points % self.stride == 0:
            self.buckets.append((position, value, value))
        else:
            start, low, high = self.buckets[-1]
            self.buckets[-1] = (start, min(low, value), max(high, value))
        self._points += 1

    def line(self) -> tuple[list[float], list[float]]:
        """The line to draw: a bucket with two values goes from the lowest to the highest."""
        points = [
            (position, value)
            for position, low, high in self.buckets
            for value in ((low, high) if high > low else (low,))
        ]
        return [position for position, _ in points], [value for _, value in points]


class Curves:
    """Loss and IoU of one run: of every interval, and the mean of every epoch."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.intervals = {name: Curve() for name in NAMES}
        self.epochs = {name: Curve() for name in NAMES}
        for record in records:
            self.add(record)

    def __bool__(self) -> bool:
        return any(curve.buckets for curve in (*self.intervals.values(), *self.epochs.values()))

    def add(self, record: Record) -> None:
        """Add one record; epoch e covers e - 0.5 to e + 0.5."""
        if isinstance(record, IntervalRecord):
            position = record.epoch - 0.5 + record.sample / record.samples
            self.intervals["loss"].add(position, record.interval_loss)
            self.intervals["iou"].add(position, record.interval_iou)
        elif isinstance(record, EpochRecord):
            for name, curve in self.epochs.items():
                curve.add(record.epoch, getattr(record, name))

    def to_json(self) -> dict[str, Any]:
        """The curves as JSON, for the process that draws them."""
        return {
            kind: {name: list(curve.buckets) for name, curve in getattr(self, kind).items()}
            for kind in ("intervals", "epochs")
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Curves:
        """The inverse of `to_json`."""
        made = cls()
        for kind in ("intervals", "epochs"):
            for name, buckets in values[kind].items():
                getattr(made, kind)[name] = Curve([tuple(bucket) for bucket in buckets])
        return made
