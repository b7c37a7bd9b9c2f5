"""Writing result files in the field's text form; `seqtrack.annotation_files` reads them."""

from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.evaluation.metrics import Array


def write_boxes(path: Path, boxes_xywh: Array) -> None:
    """Write (N, 4) boxes, one `x,y,w,h` per line; read again they are equal to the last bit."""
    lines = [",".join(repr(float(value)) for value in row) for row in boxes_xywh]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
