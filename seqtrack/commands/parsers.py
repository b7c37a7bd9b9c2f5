"""The parser of every command. Imports nothing of the commands themselves, so that `--help` and errors are fast."""

import argparse
import contextlib
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from seqtrack import __version__
from seqtrack.errors import USER_ERROR_EXIT_CODE, Problem, UserError
from seqtrack.parsing import ParseError, did_you_mean, parse_float, parse_int

_N = TypeVar("_N", int, float)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors have a code and the nearest name."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def format_help(self) -> str:
        """The help, with the meaning of each variable that is an option."""
        options = [action for action in self._actions if action.dest in SETTINGS]
        if options:
            from seqtrack.config.environment import VARIABLES  # start-up time: only this text needs pydantic

            for action in options:
                action.help = (VARIABLES[action.dest].description or "").replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR_EXIT_CODE, f"{Problem(f'{self.prog}: {message}', 'cli.argument').line}\n")


# Variables that `train`, `run`, `plan` and `doctor` also take as options: BATCH_SIZE as --batch-size.
SETTINGS = ("PHASE", "RESUME_EPOCH", "CONFIG", "DATASET", "CLASSES", "SEED", "EPOCHS", "BATCH_SIZE", "DEVICE", "NPROC",
            "NNODES", "NODE_RANK", "RENDEZVOUS", "MAX_RESTARTS", "OUTPUT_DIR", "DATA_DIR", "HF_REPO")  # fmt: skip


def _settings(parser: Parser) -> None:
    for name in SETTINGS:
        parser.add_argument(f"--{name.lower().replace('_', '-')}", dest=name, metavar="VALUE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any key, such as TRAIN.LR=2e-4")
    parser.epilog = (
        "--batch-size sets the variable BATCH_SIZE, and so on; docs/configuration.md has every variable and key."
    )


def variables_of(args: argparse.Namespace) -> dict[str, str]:
    """The variables that the options and KEY=VALUE of a command line set; UserError for one without an equals sign."""
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name, None) is not None}
    pairs = [word.partition("=") for word in getattr(args, "overrides", ())]
    if bad := [key for key, equals, _ in pairs if not (key and equals)]:
        raise UserError([Problem(f"{key!r}: expected KEY=VALUE, such as TRAIN.LR=2e-4", "cli.override") for key in bad])
    if pairs:
        words = [shlex.quote(word) for key, _, value in pairs for word in (key, value)]
        before = os.environ.get("OVERRIDES", "")
        with contextlib.suppress(ValueError):  # malformed: refused where it is read
            found = shlex.split(before)
            old = zip(found[::2], found[1::2], strict=True)
            kept = [pair for pair in old if pair[0] not in {key for key, _, _ in pairs}]
            before = " ".join(shlex.quote(word) for pair in kept for word in pair)
        given["OVERRIDES"] = " ".join([before, *words]).strip()
    return given


def _in_range(parse: Callable[[str], _N], text: str, least: float, most: float = math.inf) -> _N:
    try:
        value = parse(text)
    except ParseError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise argparse.ArgumentTypeError(f"found {text}, expected {limit}")
    return value


def _positive(text: str) -> int:
    return _in_range(parse_int, text, 1)


def _natural(text: str) -> int:
    return _in_range(parse_int, text, 0)


def _gib(text: str) -> float:
    return _in_range(parse_float, text, 0, 2**30)  # in bytes still finite


def _verify(parser: Parser) -> None:
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="one folder or two (default: phase_1 and phase_2 of OUTPUT_DIR)")
    text = "folder for plots, comparison.md and certificate.json (default: comparison/, for phase_1 and phase_2 only)"
    add("-o", "--output", type=Path, help=text)


def _audit(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as output/phase_1, or hf://owner/name")
    parser.add_argument("--nonce", metavar="TEXT", help="chooses the random parts (default: drawn now)")
    parser.add_argument("--segments", type=_positive, metavar="N", help="only N random parts")
    parser.add_argument(
        "--steps", type=_positive, metavar="K", help="steps of a random part (default: 25, fewer in short epochs)"
    )
    parser.add_argument("--epochs", metavar="LIST|all", help="only these epochs, whole: all, or 3,7")
    parser.add_argument("--json", action="store_true", help="print the certificate as one JSON object")
    parser.add_argument("-o", "--output", type=Path, help="the certificate (default: audit.json in the run's folder)")
    parser.epilog = "By default: the first and the last epoch, whole, and the beginnings of 3 random epochs."


def _reproduce(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as output/phase_1, or hf://owner/name")
    parser.add_argument("--epochs", type=_positive, metavar="N", help="only the first N epochs (default: all)")


def _restore(parser: Parser) -> None:
    parser.add_argument("--epoch", type=_positive, required=True, help="the epoch whose checkpoint is wanted")
    parser.add_argument("--phase", type=_positive, choices=(1, 2), help="whose checkpoint (default: PHASE, else 1)")


def _report(parser: Parser) -> None:
    add = parser.add_argument
    add("--team", type=Path, metavar="TEAM.yaml", help="title, team, number, course, members, ...")
    add("--title", help="heading of the report")
    add("--name", dest="team_name", metavar="TEAM", help="name of the team")
    add("--number", help="number of the team")
    add("--course", help="course the report is for")
    add("--member", action="append", default=[], metavar="PERSON", help="may be repeated")
    add("--repository", help="address of the code")
    add("--hub", help="address of the checkpoints")
    add("--notes", help="a further line")
    add("--html", action="store_true", help="also write a self-contained report.html")
    add("--docx", action="store_true", help="also write report.docx, a Word document")
    add("--zip", action="store_true", help="also write hand-in.zip: the report in every form, tables, plots and logs")


def _runtime(parser: Parser) -> None:
    text = "what runs a model of --onnx (default: onnxruntime)"
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help=text)


def _evaluate(parser: Parser) -> None:
    add = parser.add_argument
    add("--phase", type=_positive, choices=(1, 2), help="whose checkpoints (default: PHASE, else 1)")
    text = (
        "all, last, an epoch (3), a range (2-5), a file or nano; may be repeated (default: all, or none with --results "
        "or --onnx)"
    )
    add("--checkpoint", action="append", metavar="WHICH", help=text)
    text = "checkpoints of HF_REPO or UPLOAD_TARGET, each on the disk only while it is loaded"
    add("--hub", action="store_true", help=text)
    add("--onnx", type=Path, metavar="FOLDER", help="evaluate a model of `export --onnx` as well, on the CPU")
    _runtime(parser)
    add("--split", choices=("test", "train"), default="test", help="default: test")
    add("--dataset", help="data set (default: DATASET if set, else the run's own)")
    add("--classes", help="classes, separated by commas (default: CLASSES if set, else the run's own)")
    add("--sequences", help="only these sequences, separated by commas")
    text = "another tracker's <sequence>.txt files or .npz, or a folder of such; may be repeated"
    add("--results", action="append", type=Path, metavar="DIR", help=text)
    text = "with --results: annotations kept without frames (.npz, a folder annos, or LaSOT's layout)"
    add("--annotations", type=Path, metavar="PLACE", help=text)
    text = (
        "rows of NaN or negative size in result files: refuse the file, or repeat the last good box as LaSOT's toolkit "
        "does (default: strict; rows of size 0 are always repeated)"
    )
    add("--repair", choices=("strict", "official"), default="strict", help=text)
    text = (
        "how frames count whose annotation is not a box: as in the MATLAB toolkits, in pytracking or in the authors' "
        "evaluator (default: toolkit for LaSOT, authors for the other test sets)"
    )
    add("--convention", choices=("toolkit", "pytracking", "authors"), help=text)
    text = "flags of sequences: a folder of <sequence>.txt, a text or .npz (default: next to the annotation)"
    add("--attributes", type=Path, metavar="PLACE", help=text)
    add("--merge-runs", action="store_true", help="results in NAME_000, NAME_001, ... are runs of one tracker")
    text = "also write the plots like this; may be repeated"
    add("--plot-format", action="append", choices=("pdf", "svg"), help=text)
    text = "track with the untrained model as well (default: with all checkpoints)"
    add("--untrained", action=argparse.BooleanOptionalAction, help=text)
    _precision_and_device(parser)
    add("--concurrent", type=_positive, default=16, help="sequences tracked in one batch (default: 16)")
    add("-o", "--output", type=Path, help="folder for tables and plots (default: the run's evaluation/)")


def _course(parser: Parser) -> None:
    text = "a3: two phases; a4: and every epoch evaluated; a5: a model per group of classes, compared"
    parser.add_argument("assignment", choices=("a3", "a4", "a5"), help=text)
    text = "team, classes, repository (default: course.yaml)"
    parser.add_argument("file", nargs="?", type=Path, default=Path("course.yaml"), metavar="COURSE.yaml", help=text)
    parser.add_argument("--example", action="store_true", help="print such a file to fill in, and do nothing")


def _compare(parser: Parser) -> None:
    text = "a phase's folder, or an output folder, of which phase 1 is taken; evaluated before"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=text)
    parser.add_argument("--docx", action="store_true", help="also write compare.docx, a Word document")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: OUTPUT_DIR/compare")


def _submit(parser: Parser) -> None:
    add = parser.add_argument
    add("--dataset", required=True, metavar="SET", help="got10k_test or trackingnet")
    text = "folder of one tracker's <sequence>.txt (and <sequence>_time.txt), in the layouts that `evaluate` reads"
    add("--results", type=Path, metavar="DIR", help=text)
    add("--checkpoint", metavar="WHICH", help="track with this one: last, an epoch, a file or nano")
    add("--check", type=Path, metavar="ZIP", help="only check a zip")
    add("--phase", type=_positive, choices=(1, 2), help="whose checkpoints (default: PHASE, else 1)")
    text = "names (a text) or names, lengths and first boxes (.npz) of the set (default: its frames in DATA_DIR)"
    add("--expected", type=Path, metavar="FILE", help=text)
    add("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE, else auto")
    add("-o", "--output", type=Path, metavar="ZIP", help="default: <set>.zip in OUTPUT_DIR")


def _precision_and_device(parser: Parser) -> None:
    text = "of the encoder; tf32 and fp16 need a GPU (default: fp32)"
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="fp32", help=text)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE, else auto")


def _track(parser: Parser) -> None:
    parser._negative_number_matcher = re.compile(r"-\.?[0-9]")  # so that --box -20,-10,60,60 has a value
    add = parser.add_argument
    text = "a video file, a folder of images, or the number of a camera, unless a file has that name"
    add("source", metavar="VIDEO|FOLDER|CAMERA", help=text)
    add("--box", metavar="X,Y,W,H", help="the object in the first frame, in pixels from the top left")
    text = (
        "OUT.mp4 (VP9, which browsers play) or OUT.avi (Motion JPEG: large, much faster to write); boxes go to "
        "OUT.txt, settings to OUT.json (default: OUTPUT_DIR/tracks/NAME.mp4)"
    )
    add("-o", "--output", type=Path, metavar="OUT.mp4", help=text)
    text = (
        "nano, which comes with this program, a .safetensors file, an epoch of the phase's run, or last (default: last)"
    )
    add("--checkpoint", metavar="WHICH", help=text)
    add("--onnx", type=Path, metavar="FOLDER", help="a model of `export --onnx` instead of a checkpoint, on the CPU")
    _runtime(parser)
    add("--phase", type=_positive, choices=(1, 2), help="whose checkpoints (default: PHASE, else 1)")
    add("--frames", type=_positive, metavar="N", help="stop after N frames")
    text = "frames per second of the output (default: as the source states; 30 for a folder)"
    add("--fps", metavar="RATE", help=text)
    _precision_and_device(parser)
    add("--no-video", action="store_true", help="write OUT.txt and OUT.json only")


def _data(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    download = commands.add_parser("download", help="fetch classes of LaSOT from the Hub, resumable and checked")
    check = commands.add_parser("check", help="count and check the data, changing nothing; exit code 1 on problems")
    show = commands.add_parser("show", help="an image of training samples as the model gets them")
    commands.add_parser("prepare", help="download or draw into DATA_DIR what this environment's run needs")
    add_own = commands.add_parser("import", help="bring an annotated video of your own into LaSOT's layout")
    for one in (download, check, add_own):
        one.add_argument("--data-dir", type=Path, help="default: DATA_DIR, else ./data")
    for one in (download, check):
        one.add_argument("--classes", help="separated by commas (default: CLASSES)")
    download.add_argument("--split", choices=("train", "test", "all"), default="all", help="default: all")
    download.add_argument("--sequences", default="", help="only these sequences, separated by commas")
    download.add_argument("--repo", default="l-lt/LaSOT", help="data set on the Hub (default: l-lt/LaSOT)")
    check.add_argument("--dataset", help="lasot, demo or nano (default: DATASET)")
    check.add_argument("--decode", action="store_true", help="read every pixel of every frame")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    show.add_argument("-o", "--output", type=Path, default=Path("samples.png"), help="default: samples.png")
    show.add_argument("--count", type=_positive, default=12, help="samples (default: 12)")
    show.add_argument("--epoch", type=_natural, default=1, help="epoch whose samples are shown (default: 1)")
    show.add_argument("--first", type=_natural, default=0, help="index of the first sample in the epoch (default: 0)")
    add = add_own.add_argument
    add("format", choices=("coco", "cvat", "yolo", "csv"), help="format of the boxes")
    add("boxes", type=Path, metavar="BOXES", help="the annotation file; with yolo, the folder of .txt files")
    add("frames", metavar="FRAMES", help="the video file, or the folder of its frames")
    add("--split", choices=("train", "test"), default="train", help="default: train")
    add("--class", dest="class_name", metavar="NAME", help="class of every object (default: as annotated)")
    add("--object", dest="object_ids", default="", metavar="ID", help="only these objects, separated by commas")
    add("--first", type=_natural, metavar="N", help="number of the first frame in BOXES (default: 0 with cvat, else 1)")
    text = "boxes in between for up to N frames without one (default: 0, the object is out of view there)"
    add("--fill-gaps", type=_natural, default=0, metavar="N", help=text)


def _upload(parser: Parser) -> None:
    text = "default: watch until training is done"
    parser.add_argument("action", nargs="?", choices=("watch", "status"), default="watch", help=text)
    parser.add_argument("--once", action="store_true", help="one pass; exit code 0 only if everything is verified")
    parser.add_argument("--health", action="store_true", help="with status: exit code 1 and the reasons if unhealthy")


def _hub(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("create", help="create the repo of HF_REPO, private unless HF_PRIVATE=false")
    actions.add_parser("check", help="check token, repo and right to write; compare OUTPUT_DIR with what is listed")
    upload = actions.add_parser("upload", help="send files now")
    text = "files to send, each checked on the target afterwards"
    upload.add_argument("files", nargs="+", type=Path, metavar="FILE", help=text)
    text = "name in the repo (one file only); default: relative to OUTPUT_DIR"
    upload.add_argument("--to", metavar="PATH", help=text)
    download = actions.add_parser("download", help="download a checkpoint, or one file, checked against its digest")
    download.add_argument("path", nargs="?", help="a file of the repo; or use --epoch")
    download.add_argument("--epoch", type=_positive, help="the checkpoint after this epoch, with its manifest")
    download.add_argument("--phase", type=_positive, choices=(1, 2), help="whose checkpoint (default: PHASE, then 1)")
    download.add_argument("--into", type=Path, metavar="DIR", help="default: where it would lie in OUTPUT_DIR")
    card = actions.add_parser("card", help="write OUTPUT_DIR/README.md from measured files, and send it")
    card.add_argument("--no-upload", action="store_true", help="only write it")


def _plan(parser: Parser) -> None:
    _settings(parser)
    text = 'another GPU: its name ("T4", "RTX 3050 Laptop") or compute capability ("7.5")'
    parser.add_argument("--gpu", help=text)
    parser.add_argument("--memory-gib", type=_gib, help="memory of the device, in GiB")
    parser.add_argument("--disk-gib", type=_gib, help="free disk space, in GiB")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def _export(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a .safetensors checkpoint, its .json, or nano")
    text = "file to write, FILE.pth.tar; with --onnx a folder"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=text)
    text = "write ONNX graphs, compared with torch first (needs the packages onnx and onnxruntime)"
    parser.add_argument("--onnx", action="store_true", help=text)
    parser.add_argument("--force", action="store_true", help="replace what exists")


def _import(parser: Parser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.pth.tar", help="checkpoint of the authors' code, or of `export`")
    text = "experiment it was trained with: seqtrack_b256 or a YAML file (default: as `export` recorded it in the file)"
    add("--config", help=text)
    add("-o", "--output", type=Path, required=True, metavar="OUT.safetensors", help="file to write")
    add("--skip-objects", action="store_true", help="read only the weights from a file with Python objects")
    add("--force", action="store_true", help="replace the file if it exists")


# Each command's summary and arguments; `run` of the module `seqtrack.commands.<name>` executes it.
COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "train": ("train one phase; settings are environment variables or options", _settings),
    "run": ("train with the uploader next to it, as the image does; settings as for train", _settings),
    "verify": ("compare two runs, or check one by itself", _verify),
    "audit": ("recompute parts of a run and compare them with what it recorded", _audit),
    "reproduce": ("train a published run again and find where this machine leaves it", _reproduce),
    "restore": ("recompute the checkpoint of an epoch that a run kept no file of", _restore),
    "report": ("write the report of a run from its files", _report),
    "evaluate": ("evaluate checkpoints or result files by one-pass evaluation", _evaluate),
    "submit": ("write or check the file for the server of GOT-10k or TrackingNet", _submit),
    "compare": ("compare the evaluations of several runs: one table, curves over the epochs", _compare),
    "track": ("track one object in a video, a folder of frames or a camera stream", _track),
    "data": ("download, check, preview and import training data", _data),
    "upload": ("upload new files of the output folder, and keep watching it", _upload),
    "hub": ("helper commands for the Hugging Face Hub: create, check, upload, download, card", _hub),
    "course": ("do a whole assignment, from one small file to the zip to hand in", _course),
    "plan": ("estimate parameters, tokens, memory and disk of a configuration", _plan),
    "doctor": ("check this machine: GPU, memory, disk, data, token", _settings),
    "export": ("write a checkpoint as the authors' .pth.tar, or as ONNX", _export),
    "import": ("read the authors' .pth.tar into a checkpoint", _import),
}


def command_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and that of each command."""
    parser = Parser(
        prog="seqtrack",
        description="Train the SeqTrack tracker reproducibly.",
        epilog="`seqtrack COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"seqtrack {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found: dict[str, Parser] = {}
    for name, (summary, add_arguments) in COMMANDS.items():
        found[name] = commands.add_parser(name, help=summary, description=summary)
        add_arguments(found[name])
    return parser, found


def parse_command(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line.

    Raises:
        UserError: no such command, or arguments that it does not have, each with the nearest name.
        SystemExit: as argparse ends a program, after --help, or after a value that an option does not take.
    """
    parser, parsers = command_parsers()
    if words and not words[0].startswith("-") and words[0] not in parsers:
        raise UserError(f"no such command: {words[0]}{did_you_mean(words[0], parsers)}", "cli.command")
    args, unknown = parser.parse_known_args(words)
    if hasattr(args, "overrides"):  # argparse takes only the KEY=VALUE up to the next option
        args.overrides += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        options = re.findall(r"--[a-z][a-z-]*", parsers[args.command].format_help())
        texts = [f"{args.command}: no such argument: {word}{did_you_mean(word, options)}" for word in unknown]
        raise UserError([Problem(text, "cli.argument") for text in texts])
    return args
