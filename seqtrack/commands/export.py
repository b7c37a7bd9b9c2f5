"""`seqtrack export`: write a checkpoint as the authors' `.pth.tar`, for their tracker and tools."""

import argparse

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.checkpoints.store import load_weights, manifest_of
from seqtrack.errors import UserError
from seqtrack.model.authors import write_authors_file


def run(args: argparse.Namespace) -> int:
    """Write the file."""

    if args.output.exists() and not args.force:
        raise UserError(f"{args.output} exists; choose another file or use --force", code="file.exists")
    manifest = manifest_of(args.checkpoint)
    weights = load_weights(manifest)
    data = write_authors_file(weights, epoch=manifest.epoch)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, data)
    except OSError as error:
        raise UserError(f"{args.output}: {error.strerror or error}", code="file.unwritable") from error
    print(f"{args.output}: epoch {manifest.epoch}, {len(weights)} tensors, {len(data)} bytes")
    return 0
