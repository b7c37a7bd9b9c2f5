"""`seqtrack course`: a whole assignment from one small YAML file to the zip to hand in, by the commands that exist.

Every step is a command that continues or does nothing where its work is done, so the same call continues a course that
was stopped. Knows which steps an assignment has, and nothing of how they work.
"""

import argparse
import logging
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seqtrack.checkpoints.side_files import problems_of
from seqtrack.commands.run import SEQTRACK, exit_code, start
from seqtrack.config.environment import configure, read_environment
from seqtrack.data.sources import check_classes
from seqtrack.errors import STOPPED_EXIT_CODE, Problem, UserError
from seqtrack.process import stop_signals
from seqtrack.reports.handin import write_hand_in
from seqtrack.reports.report import Team, read_document
from seqtrack.run_dir import COMPARE, COMPARISON, FETCHED, HAND_IN_FILE, PHASES
from seqtrack.runtime.metrics_log import clock

logger = logging.getLogger(__name__)

EXAMPLE = """\
# One file for the assignments: seqtrack course a3|a4|a5 course.yaml
team:
  title: Assignment
  team: Our team
  members:
    - Ada Lovelace, 12345
    - Alan Turing, 23456
  reflections:
    Ada Lovelace: What I did and what I learned.
    Alan Turing: What I did and what I learned.
  repository: https://github.com/owner/name
dataset: lasot              # or demo: synthetic, for a trial in minutes
classes: [book, coin]       # assignments 3 and 4
groups:                     # assignment 5: one model per group
  group_1: [electricfan, elephant, flag, fox, frog]
  group_2: [gametarget, gecko, giraffe, goldfish, gorilla]
repo: null                  # owner/name or datasets/owner/name on the Hub; the token: HF_TOKEN or HF_TOKEN_PATH
# target: folder:/mnt/backup  # instead of repo
# config: coin_kite_256     # experiment; default: coin_kite_256, ten_classes_t4 in assignment 5, demo for the demo data
# resume_epoch: 3           # where phase 2 continues
# settings: {TRAIN.EPOCH: 10, TRAIN.SEED: 42}
"""


class Course(BaseModel):
    """The file: who, on what, and where to; `settings` are keys of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    team: Team = Team()
    dataset: str = "lasot"
    classes: list[str] = []
    groups: dict[str, list[str]] = {}
    repo: str | None = None
    target: str | None = None
    config: str | None = None
    resume_epoch: int = Field(3, ge=1)
    settings: dict[str, str | int | float | bool] = {}


class Step(NamedTuple):
    """A command, what it is for, and the variables that it gets."""

    what: str
    words: list[str]
    variables: Mapping[str, str]


Execute = Callable[[Step, float | None], int]


def run(args: argparse.Namespace, execute: Execute | None = None) -> int:
    """Take every step of an assignment, and write the zip.

    Args:
        execute: how a step's command is run, for some seconds at most; returns its exit code.
    """
    if args.example:
        print(EXAMPLE, end="")
        return 0
    course, environment = read_course(args.file), read_environment(os.environ)
    output, limit, began = environment.output_dir, environment.stop_after_s, time.monotonic()
    steps = assignment_steps(args.assignment, course, output, args.file)
    _check_runs(steps)
    for number, step in enumerate(steps, start=1):
        spent = time.monotonic() - began
        logger.info("[%d/%d] %s; %s so far", number, len(steps), step.what, clock(spent))
        left = None if limit is None else limit - spent
        code = STOPPED_EXIT_CODE if left is not None and left < 1 else (execute or execute_step)(step, left)
        if code:
            if code == STOPPED_EXIT_CODE:
                logger.info("stopped; the same command continues")
            else:
                command = f"{environment.seqtrack_command} {shlex.join(step.words)}"
                logger.error("%s ended with exit code %d; the same course command continues there", command, code)
            return code
    if args.assignment == "a5":
        folders = {"": output, **{name: output / name for name in course.groups}}
        try:
            print(output / HAND_IN_FILE, *write_hand_in(output / HAND_IN_FILE, folders, course.team), sep="\n  ")
        except OSError as error:
            raise UserError(f"{output / HAND_IN_FILE}: cannot be written ({error})", "file.unwritable") from error
    logger.info("%s is complete: %s", args.assignment, output / HAND_IN_FILE)
    return 0


def read_course(path: Path) -> Course:
    """The course of a YAML file.

    Raises:
        UserError: unreadable, not YAML, unknown keys, wrong types.
    """
    if not path.is_file():
        text = f"{path}: no such file; `seqtrack course a3 --example > course.yaml` writes one to fill in"
        raise UserError(text, "course.no_file")
    try:
        return Course.model_validate(read_document(path, "course.yaml"))
    except ValidationError as error:
        raise UserError(problems_of(path, error, "course.yaml")) from error


def assignment_steps(assignment: str, course: Course, output: Path, file: Path) -> list[Step]:
    """The steps of "a3", "a4" or "a5".

    Raises:
        UserError: the file names no classes, or no groups, for it, or a group that cannot have a folder.
    """
    groups = course.groups if assignment == "a5" else {"": course.classes}
    if not groups:
        raise UserError(f"{file}: assignment 5 needs `groups`, each with its classes", "course.no_groups")
    if assignment != "a5" and not course.classes and course.dataset != "demo":
        raise UserError(f"{file}: assignments 3 and 4 need `classes`", "course.no_classes")
    taken = (*PHASES, COMPARE, COMPARISON, FETCHED)
    for name, classes in groups.items() if assignment == "a5" else ():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name in taken:
            text = f"{file}: group {name!r}: expected a name of letters, digits, _ . and -, for a folder of its own"
            raise UserError(text, "course.group")
        if not classes and course.dataset != "demo":
            raise UserError(f"{file}: group {name!r} has no classes", "course.no_classes")
    hub, steps = ["--hub"] if course.repo or course.target else [], list[Step]()
    for name, classes in groups.items():
        variables = _variables(course, output / name, classes, name, "ten_classes_t4" if name else "coin_kite_256")
        upload = [Step("upload what is left", ["upload", "--once"], variables)] if hub else []
        own, phases = [Step("train phase 1", ["run"], variables)], [1]
        if assignment != "a5":
            two, phases = {**variables, "PHASE": "2", "RESUME_EPOCH": str(course.resume_epoch)}, [1, 2]
            own.append(Step(f"train phase 2 from epoch {course.resume_epoch}", ["run"], two))
            own.append(Step("compare the phases", ["verify"], variables))
        own += upload
        if assignment != "a3":
            own += [Step(f"evaluate phase {n}", ["evaluate", "--phase", str(n), *hub], variables) for n in phases]
        team = ["--team", str(file.resolve())] if course.team != Team() else []
        own += [Step("write the report", ["report", "--zip", *team], variables), *upload]
        steps += [one._replace(what=f"{name}: {one.what}" if name else one.what) for one in own]
    if assignment == "a5":
        runs = [str(output / name) for name in groups]
        steps.append(Step("compare the models", ["compare", "--docx", *runs, "-o", str(output / COMPARE)], {}))
    return steps


def _check_runs(steps: list[Step]) -> None:
    """Refuse what a later training step would refuse, before the first one trains for hours.

    Raises:
        UserError: every problem with the settings and the classes of every run.
    """
    problems: list[Problem] = []
    for step in steps:
        if step.words == ["run"]:
            try:
                environment, config = configure({**os.environ, **step.variables})
                if environment.phase == 1:
                    check_classes(environment, config)
            except UserError as error:
                problems += [Problem(f"{step.what}: {one}", one.code) for one in error.problems]
    if problems:
        raise UserError(problems)


def _variables(course: Course, output: Path, classes: list[str], prefix: str, config: str) -> dict[str, str]:
    # Without a copy elsewhere every checkpoint stays, to be evaluated.
    settings = ({} if course.repo or course.target else {"TRAIN.KEEP_CHECKPOINTS": 0}) | course.settings
    pairs = [word for key, value in settings.items() for word in (key, str(value))]
    # An empty variable is not set: whatever the environment has of these, the file decides.
    return {
        "OUTPUT_DIR": str(output), "DATASET": course.dataset, "CLASSES": ",".join(classes), "PHASE": "1",
        "CONFIG": course.config or ("demo" if course.dataset == "demo" else config), "OVERRIDES": shlex.join(pairs),
        "HF_REPO": course.repo or "", "UPLOAD_TARGET": course.target or "", "HF_PREFIX": prefix,
        "RESUME_EPOCH": "latest" if course.repo or course.target else "",  # a session may begin with an empty disk
    }  # fmt: skip


def execute_step(step: Step, seconds: float | None) -> int:
    """Run the command as a process of its own, and stop it after that time or as this process is; its exit code."""
    is_training = step.words == ["run"]  # which stops by itself, and uploads what it saved
    limit = {"STOP_AFTER_S": str(seconds)} if seconds is not None and is_training else {}
    process, stopped = start([*SEQTRACK, *step.words], {**os.environ, **step.variables, **limit}), list[int]()

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        process.wait(None if is_training else seconds)
    except subprocess.TimeoutExpired:
        stop(signal.SIGTERM, None)
    code = exit_code(process)
    for number, handler in before.items():
        signal.signal(number, handler)
    return STOPPED_EXIT_CODE if stopped else code
