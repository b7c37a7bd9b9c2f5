"""`seqtrack export` and `import`: a checkpoint as the authors' `.pth.tar` or as ONNX, and theirs as a checkpoint."""

import argparse
import json

import yaml

from seqtrack.checkpoints.safetensors_io import utc_now, write_atomic
from seqtrack.checkpoints.store import load_weights, manifest_of, write_weights
from seqtrack.config.loader import config_digest, config_from_text, dump_config, load_config
from seqtrack.errors import Problem, UserError
from seqtrack.model.authors import read_authors_file, recorded_config, write_authors_file
from seqtrack.model.build import build_empty
from seqtrack.model.spec import model_spec
from seqtrack.places import find_checkpoint
from seqtrack.run_dir import manifest_path
from seqtrack.tracking.onnx_export import export_onnx
from seqtrack.tracking.onnx_model import RECORD

_OTHER_MODEL = ("weights.missing", "weights.unexpected", "weights.shape")


def run(args: argparse.Namespace) -> int:
    """Check every name and shape, then write the file."""
    if args.command == "import" and args.output.suffix != ".safetensors":
        raise UserError(f"{args.output}: a checkpoint's name must end in .safetensors", code="file.name")
    written = [args.output, manifest_path(args.output)][: 2 if args.command == "import" else 1]
    if args.command == "export" and args.onnx:
        written = [args.output / RECORD]
    if not args.force and (there := [str(path) for path in written if path.exists()]):
        raise UserError(f"{', '.join(there)} exists; choose another name or use --force", code="file.exists")
    try:
        text = _export(args) if args.command == "export" else _import(args)
    except OSError as error:
        raise UserError(f"{args.output}: {error.strerror or error}", code="file.unwritable") from error
    print(f"{args.output}: {text}")
    return 0


def _export(args: argparse.Namespace) -> str:
    manifest = manifest_of(find_checkpoint(str(args.checkpoint)))
    if args.onnx:
        record = export_onnx(manifest, args.output)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in record.checked.items())
        return f"epoch {manifest.epoch}, compared with torch: {shown}"
    weights = load_weights(manifest)
    config = json.dumps(manifest.config) if manifest.config else None
    data = write_authors_file(weights, epoch=manifest.epoch, config=config)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.output, data)
    return f"epoch {manifest.epoch}, {len(weights)} tensors, {len(data)} bytes"


def _import(args: argparse.Namespace) -> str:
    if args.config is not None:
        config = load_config(args.config)
    elif (recorded := recorded_config(args.file)) is not None:
        config = config_from_text(recorded, str(args.file))
    else:
        text = f"{args.file} does not name its experiment: add --config seqtrack_b256, or whichever it was trained with"
        raise UserError(text, code="import.config")
    expected = build_empty(model_spec(config)).state_dict()
    try:
        weights, epoch = read_authors_file(args.file, expected, skip_objects=args.skip_objects)
    except UserError as error:
        if any(problem.code in _OTHER_MODEL for problem in error.problems):
            model = args.config or "the configuration in it"
            last = Problem(f"the weights are not those of the model of {model}", "weights.other_model")
            raise UserError([*error.problems, last]) from error
        raise
    describe: dict[str, object] = {
        "epoch": epoch,
        "step": 0,
        "sample": 0,
        "loss": None,
        "iou": None,
        "parent_sha256": None,
    }
    describe |= {"config_digest": config_digest(config), "config": yaml.safe_load(dump_config(config))}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    manifest = write_weights(args.output, weights, describe={**describe, "data_digest": None, "created": utc_now()})
    return f"epoch {epoch}, {len(weights)} tensors, weights {manifest.weights_sha256[:16]}"
