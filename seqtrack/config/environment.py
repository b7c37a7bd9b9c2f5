"""What the environment variables of a run say together, and the configuration that follows.

A variable that is empty counts as not set, because compose hands on empty ones. Everything malformed is reported at
once. Knows the form of a value only: whether a folder, a class or a repository exists is asked by those who use it.
The token itself is never kept here, so it can stand in no log and no report.
"""

import os
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from seqtrack.config import forms
from seqtrack.config.load import is_file_name, load_config
from seqtrack.config.schema import Config
from seqtrack.config.text import nearest, shown
from seqtrack.config.variables import VARIABLES
from seqtrack.errors import UserError

# Phase 2 shows that a run which was cut after this epoch ends as the uncut one did.
DEFAULT_RESUME_EPOCH = 3


@dataclass(frozen=True)
class Environment:
    """What the environment asks for. `None` and empty: not asked, the configuration decides."""

    phase: int = 1
    resume_epoch: int | None = None
    seed: int | None = None
    config: str = "demo"
    dataset: str = "demo"
    classes: tuple[str, ...] = ()
    data_dir: Path = Path("./data")
    output_dir: Path = Path("./output")
    epochs: int | None = None
    batch_size: int | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    nproc: str | int = 1
    hf_repo: str | None = None
    hf_token_path: Path | None = None
    hf_endpoint: str | None = None
    hf_private: bool = True
    upload_target: str | None = None
    # Which of the above the user wrote: a default may not win over a file of the user's.
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @property
    def target(self) -> str | None:
        """Where files are sent to, as the user wrote it: UPLOAD_TARGET, else HF_REPO; None sends nothing."""
        return self.upload_target or self.hf_repo

    def phase_folder(self, phase: int | None = None) -> Path:
        """Where everything of one phase's run is written; this one's unless another is named."""
        return self.output_dir / f"phase_{phase or self.phase}"


def read_environment(environ: Mapping[str, str], *, known_datasets: Collection[str] = ()) -> Environment:
    """Read every variable of the table.

    Args:
        environ: usually `os.environ`.
        known_datasets: if given, DATASET may name only these.

    Raises:
        UserError: every malformed variable, and every unknown SEQTRACK_ one.
    """
    environment, problems = _read(environ, known_datasets)
    if problems:
        raise UserError(problems)
    return environment


def resolve(environment: Environment) -> Config:
    """The configuration that an environment asks for: CONFIG, then the variables, then OVERRIDES.

    Raises:
        UserError: every problem of the configuration.
    """
    config, problems = _resolve(environment)
    if config is None or problems:
        raise UserError(problems)
    return config


def configure(environ: Mapping[str, str], *, known_datasets: Collection[str] = ()) -> tuple[Environment, Config]:
    """`read_environment` and `resolve` in one, so that the problems of both are reported together."""
    environment, problems = _read(environ, known_datasets)
    config, more = _resolve(environment)
    if config is None or problems or more:
        raise UserError([*problems, *more])
    return environment, config


def read_variable(environ: Mapping[str, str], name: str) -> Any:
    """One variable of the table as its value, its default where it is not set, None where it has none.

    Raises:
        UserError: it is malformed.
    """
    value, problem = _value(environ, name)
    if problem is not None:
        raise UserError(problem)
    return value


def read_token(environ: Mapping[str, str]) -> str | None:
    """The access token: the file's if HF_TOKEN_PATH is set, read anew so that it can be exchanged; else HF_TOKEN.

    Raises:
        UserError: the file cannot be read or holds no token. The message names the file, never what is in it.
    """
    path = read_variable(environ, "HF_TOKEN_PATH")
    if path is None:
        return cast("str | None", read_variable(environ, "HF_TOKEN"))
    try:
        return forms.token(path.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise UserError(f"HF_TOKEN_PATH: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"HF_TOKEN_PATH: {path} holds no token; expected one line and nothing else") from None


def load_dotenv_file(folder: Path, environ: MutableMapping[str, str] | None = None) -> Path | None:
    """Add the variables of `folder/.env` that are not set yet, as compose would; the real environment wins.

    Returns:
        The file, or None if there is none.

    Raises:
        UserError: a line that is no `NAME=value`. python-dotenv alone would pass over it.
    """
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    target = os.environ if environ is None else environ
    path = folder / ".env"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as stream:
            bad = [binding.original.line for binding in parse_stream(stream) if binding.error]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if bad:
        # The line itself is not shown: it may hold the token.
        raise UserError([f"{path} line {line}: expected NAME=value" for line in bad])
    for name, value in dotenv_values(path, encoding="utf-8").items():
        if value is not None:
            target.setdefault(name, value)
    return path


def _value(environ: Mapping[str, str], name: str) -> tuple[Any, str | None]:
    """A variable's value and no problem, or None and the problem."""
    variable = VARIABLES[name]
    text = environ.get(name, "").strip() or variable.default
    if not text:
        return None, None
    try:
        return variable.read(text), None
    except ValueError as error:
        # A name before an @ may be a user's, with the password after it.
        found = "a value that is not shown" if variable.secret or "@" in text else shown(text)
        return None, f"{name}: found {found}, expected {error}"


def _read(environ: Mapping[str, str], known_datasets: Collection[str]) -> tuple[Environment, list[str]]:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name in VARIABLES:
        values[name], problem = _value(environ, name)
        if problem is not None:
            problems.append(problem)
    for name in sorted(set(environ) - set(VARIABLES)):
        if name.startswith("SEQTRACK_"):
            ours = [one for one in VARIABLES if one.startswith("SEQTRACK_")]
            problems.append(f"{name}: there is no such variable{nearest(name, ours)}")
    given = frozenset(name for name in VARIABLES if environ.get(name, "").strip())
    datasets = values["DATASET"] or ()
    if known_datasets:
        known = {one.upper(): one for one in known_datasets}
        problems += [f"DATASET: there is no {one}{nearest(one, known)}" for one in datasets if one.upper() not in known]
    phase = int(values["PHASE"] or 1)
    resume_epoch = values["RESUME_EPOCH"]
    if phase == 2 and "RESUME_EPOCH" not in given:
        resume_epoch = DEFAULT_RESUME_EPOCH
    dataset = ",".join(datasets)
    config = values["CONFIG"] or ("demo" if dataset.lower() == "demo" else "seqtrack_b256")
    if "DATASET" not in given and is_file_name(config):
        dataset = ""
    direct = {"DATA_DIR", "OUTPUT_DIR", "SEED", "EPOCHS", "BATCH_SIZE", "DEVICE", "NPROC", "HF_REPO"}
    direct |= {"HF_TOKEN_PATH", "HF_ENDPOINT", "HF_PRIVATE", "UPLOAD_TARGET"}
    environment = Environment(
        phase=phase,
        resume_epoch=resume_epoch,
        config=config,
        dataset=dataset,
        classes=values["CLASSES"] or (),
        overrides=values["OVERRIDES"] or (),
        given=given,
        **{name.lower(): values[name] for name in sorted(direct)},
    )
    return environment, problems


def _resolve(environment: Environment) -> tuple[Config | None, list[str]]:
    layer: list[tuple[str, tuple[str, str]]] = []
    if environment.dataset:
        names = [_dataset_key(one) for one in environment.dataset.split(",")]
        layer.append(("DATASET", ("DATA.TRAIN.DATASETS_NAME", ",".join(names))))
        layer.append(("DATASET", ("DATA.TRAIN.DATASETS_RATIO", ",".join("1" for _ in names))))
    if environment.classes:
        layer.append(("CLASSES", ("DATA.CLASSES", ",".join(environment.classes))))
    if environment.seed is not None:
        layer.append(("SEED", ("TRAIN.SEED", str(environment.seed))))
    if environment.epochs is not None:
        layer += [("EPOCHS", (key, str(environment.epochs))) for key in ("TRAIN.EPOCH", "TEST.EPOCH")]
    if environment.batch_size is not None:
        layer.append(("BATCH_SIZE", ("TRAIN.BATCH_SIZE", str(environment.batch_size))))
    try:
        config = load_config(
            environment.config, environment=layer, overrides=environment.overrides, overrides_from="OVERRIDES"
        )
    except UserError as error:
        return None, [*error.problems]
    epoch, last = environment.resume_epoch, config.TRAIN.EPOCH
    if epoch is None or epoch < last:
        return config, []
    origin = "RESUME_EPOCH" if "RESUME_EPOCH" in environment.given else "RESUME_EPOCH, unset and so"
    remedy = f"use at most {last - 1}" if last > 1 else "train more than one epoch"
    return config, [f"{origin} {epoch}: nothing of a run of {last} epochs is left to train; {remedy}"]


def _dataset_key(name: str) -> str:
    """`lasot` as the authors spell it, LASOT; a name with capitals, such as GOT10K_vottrain, stays as it is."""
    return name.upper() if name == name.lower() else name
