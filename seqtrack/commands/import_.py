"""`seqtrack import`: read the authors' `.pth.tar` into a checkpoint that `track` and `evaluate` take."""

import argparse

import yaml

from seqtrack.checkpoints.safetensors_io import utc_now
from seqtrack.checkpoints.store import write_weights
from seqtrack.config.loader import config_digest, dump_config, load_config
from seqtrack.errors import Problem, UserError
from seqtrack.model.authors import read_authors_file
from seqtrack.model.build import build_empty
from seqtrack.model.spec import model_spec
from seqtrack.run_dir import manifest_path

_OTHER_MODEL = ("weights.missing", "weights.unexpected", "weights.shape")


def run(args: argparse.Namespace) -> int:
    """Check every name and shape, then write the checkpoint and its manifest."""

    if args.output.suffix != ".safetensors":
        raise UserError(f"{args.output}: a checkpoint's name must end in .safetensors", code="file.name")
    if not args.force and (args.output.exists() or manifest_path(args.output).exists()):
        raise UserError(f"{args.output} or its .json exists; choose another file or use --force", code="file.exists")
    config = load_config(args.config)
    try:
        weights, epoch = read_authors_file(
            args.file, build_empty(model_spec(config)).state_dict(), skip_objects=args.skip_objects
        )
    except UserError as error:
        if any(problem.code in _OTHER_MODEL for problem in error.problems):
            last = Problem(f"the weights are not those of the model of {args.config}", "weights.other_model")
            raise UserError([*error.problems, last]) from error
        raise
    describe = {
        "epoch": epoch,
        "step": 0,
        "sample": 0,
        "loss": None,
        "iou": None,
        "parent_sha256": None,
        "config_digest": config_digest(config),
        "data_digest": None,
        "created": utc_now(),
        "config": yaml.safe_load(dump_config(config)),
    }
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        manifest = write_weights(args.output, weights, describe=describe)
    except OSError as error:
        raise UserError(f"{args.output}: {error.strerror or error}", code="file.unwritable") from error
    print(f"{manifest.path}: epoch {epoch}, {len(weights)} tensors, weights {manifest.weights_sha256[:16]}")
    return 0
