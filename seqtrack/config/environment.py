"""The environment variables: types, defaults, meanings, and the configuration that they describe.

An empty variable is not set, because compose passes on empty ones. All malformed values are reported at once; whether
a folder, a class or a repository exists is checked where it is used. The token is never stored, so that it cannot
appear in a log or a report.
"""

import difflib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError

from seqtrack.config.fields import Expected, Name, Settings, expected, setting
from seqtrack.config.loader import is_file_name, load_config
from seqtrack.config.schema import Config
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import did_you_mean, short_repr
from seqtrack.run_dir import phase_name

DEFAULT_RESUME_EPOCH = 3  # that phase 2 resumes after
_log = logging.getLogger(__name__)
# Commands that read a variable.
_RUNS, _DATA = "train, track, evaluate", "train, data, evaluate"
_UP, _HUB = "train, upload, hub", "train, data, upload, hub"


def _matching(pattern: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError("malformed")
        return value

    return AfterValidator(check)


def _pairs(value: str | tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    if isinstance(value, tuple):
        return value
    words = shlex.split(value)
    return tuple(zip(words[::2], words[1::2], strict=True))


_TOKEN = "[!-~]+"
_PORT = r":([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_HF_REPO = r"(?!.*(--|\.\.|[.-]/))(datasets/)?[A-Za-z0-9][\w.-]{0,95}/\w[\w.-]{0,95}(?<![.-])(?<!\.git)"
_KEY_VALUE = "KEY VALUE KEY VALUE with a blank between, and every quotation mark closed"
Token = Annotated[str, _matching(_TOKEN), Expected("one word of ASCII letters")]
Target = Annotated[str, _matching("[a-z][a-z0-9_]*:.+"), Expected("kind:place, such as folder:/mnt/backup")]
HostPort = Annotated[str, _matching(f"(?a).+{_PORT}"), Expected("host:port with a port from 1 to 65535")]
Address = Annotated[
    str,
    _matching(rf"(?a)https?://[^/?#@:\s]+({_PORT})?(/[^?#@\s]*)?"),
    AfterValidator(lambda value: value.rstrip("/")),
    Expected("http:// or https:// and a host, without a user name or password"),
]
Repository = Annotated[str, _matching(f"(?a){_HF_REPO}"), Expected("owner/name or datasets/owner/name, as on the Hub")]
Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs), Expected(_KEY_VALUE)]


class Environment(Settings):
    """Every environment variable, as the field of its lower-case name. None and empty: the configuration decides."""

    model_config = ConfigDict(extra="ignore", validate_default=False)

    phase: Literal[1, 2] = setting(1, "1 trains from the start, 2 resumes phase 1", reader=f"{_RUNS}, hub")
    resume_epoch: int | None = setting(
        None,
        "epoch after which the run continues; unset, phase 1 starts at the beginning and phase 2 at epoch 3; the "
        "entrypoint takes `latest` as well: the last one on the Hub, or the beginning",
        reader="train",
        ge=1,
    )
    config: str = setting(
        "",
        "experiment, or a path that ends in .yaml; unset, demo for DATASET=demo, else seqtrack_b256",
        reader="train",
    )
    dataset: tuple[Name, ...] = setting(
        ("demo",),
        "data sets, separated by commas: demo, lasot, got10k_train_full, got10k_vottrain; unset with a CONFIG file of "
        "your own, those that the file names",
        reader=_DATA,
    )
    classes: tuple[Name, ...] = setting((), "classes, separated by commas; unset, those of CONFIG", reader=_DATA)
    data_dir: Path = setting(Path("./data"), "folder of the data sets", reader=_DATA)
    output_dir: Path = setting(Path("./output"), "folder of phase_1, phase_2 and comparison", reader="every command")
    seed: int | None = setting(None, "TRAIN.SEED", reader="train", ge=0, le=2**32 - 1)
    epochs: int | None = setting(None, "TRAIN.EPOCH", reader="train", ge=1)
    batch_size: int | None = setting(None, "TRAIN.BATCH_SIZE: samples per step of all processes", reader="train", ge=1)
    overrides: Pairs = setting((), "`KEY VALUE KEY VALUE` for any key, quoted as in a shell", reader="train")
    device: Literal["auto", "cuda", "cpu"] = setting("auto", "auto, cuda or cpu", reader=_RUNS)
    nproc: Annotated[int, Ge(1), Le(4096)] | Literal["auto"] = setting(
        1, "processes of a run; auto starts one per GPU", reader="train"
    )
    nnodes: int = setting(1, "machines of a run", reader="train", ge=1, le=1024)
    node_rank: int = setting(0, "number of this machine, from 0", reader="train", ge=0, le=1023)
    rendezvous: HostPort | None = setting(None, "host:port of machine 0, where machines meet", reader="train")
    max_restarts: int = setting(
        0, "restarts of a run of several processes when one dies", reader="train", ge=0, le=1000
    )
    hf_repo: Repository | None = setting(
        None, "owner/name or datasets/owner/name; unset, nothing is uploaded", reader=_UP
    )
    hf_token: Token | None = setting(None, "access token; a file is safer, see HF_TOKEN_PATH", reader=_HUB)
    hf_token_path: Path | None = setting(None, "file with the token, read at each use; wins over HF_TOKEN", reader=_HUB)
    hf_endpoint: Address | None = setting(None, "address of the Hub; unset, huggingface.co", reader=_HUB)
    hf_private: bool = setting(True, "whether a repository that is created is private", reader="upload, hub")
    hf_hub_disable_xet: bool | None = setting(
        None, "1 uploads over LFS alone, for a server without Xet; read by the Hub's client", reader="upload, hub"
    )
    upload_target: Target | None = setting(None, "another target than HF_REPO, such as folder:/mnt/backup", reader=_UP)
    upload_min_commit_interval_s: float = setting(
        30.0, "least seconds between two commits; the Hub allows about 128 an hour", reader="upload", ge=0, le=3600
    )
    upload_grace_s: float = setting(
        60.0, "seconds after SIGTERM for the last files; below the container's grace", reader="upload", ge=0, le=1e6
    )
    upload_lag_limit_s: float = setting(
        3600.0, "seconds that a file may wait before the uploader is unhealthy", reader="upload", ge=0, le=1e9
    )
    upload_drain_s: float = setting(
        3600.0, "seconds for the last uploads of a container without compose", reader="entrypoint", ge=0, le=1e7
    )
    health_stale_s: float = setting(
        1800.0, "seconds without a log line until a training container is unhealthy", reader="healthcheck", ge=1, le=1e7
    )
    seqtrack_test_data: Path | None = setting(None, "folder of real test data", reader="tests")
    seqtrack_goldens: Path | None = setting(None, "folder of reference outputs", reader="tests")

    def given(self, name: str) -> bool:
        """Whether the user set this variable."""
        return name.lower() in self.model_fields_set

    @property
    def target(self) -> str | None:
        """The upload target as the user wrote it: UPLOAD_TARGET, else HF_REPO; None uploads nothing."""
        return self.upload_target or self.hf_repo

    def phase_folder(self, phase: int | None = None) -> Path:
        """The run folder of a phase, by default of this one."""
        return self.output_dir / phase_name(phase or self.phase)


VARIABLES = {name.upper(): field for name, field in Environment.model_fields.items()}


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Read every variable.

    Raises:
        UserError: every malformed variable, and every unknown SEQTRACK_ one.
    """
    environment, problems = _read(environ)
    if problems:
        raise UserError(problems)
    return environment


def configure(environ: Mapping[str, str]) -> tuple[Environment, Config]:
    """Every variable, and the configuration of CONFIG, then the variables, then OVERRIDES.

    Raises:
        UserError: every problem of both.
    """
    environment, problems = _read(environ)
    layer: list[tuple[str, str, str]] = []
    if environment.dataset:
        # `lasot` is LASOT, as the authors write it; a name with capitals, such as GOT10K_vottrain, is unchanged.
        names = [name.upper() if name == name.lower() else name for name in environment.dataset]
        layer.append(("DATASET", "DATA.TRAIN.DATASETS_NAME", ",".join(names)))
        layer.append(("DATASET", "DATA.TRAIN.DATASETS_RATIO", ",".join("1" for _ in names)))
    if environment.classes:
        layer.append(("CLASSES", "DATA.CLASSES", ",".join(environment.classes)))
    for variable, key in (("SEED", "TRAIN.SEED"), ("EPOCHS", "TRAIN.EPOCH"), ("BATCH_SIZE", "TRAIN.BATCH_SIZE")):
        if (value := getattr(environment, variable.lower())) is not None:
            layer.append((variable, key, str(value)))
    try:
        config = load_config(environment.config, variables=layer, overrides=environment.overrides)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    epoch, last = environment.resume_epoch, config.TRAIN.EPOCH
    if epoch is not None and epoch >= last:
        text = f"RESUME_EPOCH {epoch} (of phase 2 unless set): no epoch of {last} is left to train; train more epochs"
        problems.append(Problem(text, "config.resume_epoch"))
    if problems:
        raise UserError(problems)
    for text in _misspelt(environ):
        _log.warning("%s", text)
    return environment, config


def read_variable(environ: Mapping[str, str], name: str) -> Any:
    """The value of one variable, or its default.

    Raises:
        UserError: it is malformed.
    """
    return getattr(read_environment({name: environ.get(name, "")}), name.lower())


def read_token(environ: Mapping[str, str]) -> str | None:
    """The access token: the content of HF_TOKEN_PATH, read at each call so that it can be replaced; else HF_TOKEN.

    Raises:
        UserError: the file cannot be read or has no token. The message has the file's path, never its content.
    """
    path = read_variable(environ, "HF_TOKEN_PATH")
    if path is None:
        read_variable(environ, "HF_TOKEN")  # only its form; the environment object never holds it
        return environ.get("HF_TOKEN", "").strip() or None
    try:
        token = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise UserError(f"HF_TOKEN_PATH: {path} cannot be read: {error.strerror}", "token.unreadable") from None
    if not re.fullmatch(_TOKEN, token):
        raise UserError(f"HF_TOKEN_PATH: {path} has no token; expected a single line", "token.malformed")
    return str(token)


def load_dotenv_file(folder: Path, environ: MutableMapping[str, str] | None = None) -> None:
    """Add the variables of `folder/.env` that are not set, as compose does; the environment takes precedence.

    Raises:
        UserError: a line that is not `NAME=value`, which python-dotenv would skip.
    """
    target = os.environ if environ is None else environ
    path = folder / ".env"
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as stream:
            bad = [binding.original.line for binding in parse_stream(stream) if binding.error]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "dotenv.unreadable") from None
    if bad:
        # The line is not shown because it may contain the token.
        raise UserError([f"{path} line {line}: expected NAME=value" for line in bad], "dotenv.malformed")
    values = dotenv_values(path, encoding="utf-8")
    if misspelt := _misspelt(values):
        raise UserError([f"{path}: {text}" for text in misspelt], "variable.unknown")
    for name, value in values.items():
        target.setdefault(name, value or "")


def _misspelt(names: Iterable[str]) -> list[str]:
    """Names that only look like those of variables."""
    near = {name: difflib.get_close_matches(name, VARIABLES, 1, 0.85) for name in sorted(set(names) - set(VARIABLES))}
    return [f"{name}: no such variable; did you mean {close[0]}?" for name, close in near.items() if close]


def _read(environ: Mapping[str, str]) -> tuple[Environment, list[Problem]]:
    """The valid variables, and the problems of the others."""
    given = {name.lower(): environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    wrong = {}
    encoding = sys.getfilesystemencoding()
    for name, text in given.items():
        for letter in (one for one in text if not one.isprintable()):
            wrong[name] = (
                f"one line in the locale's encoding, {encoding} (try LC_ALL=C.UTF-8), without U+{ord(letter):04X}"
            )
    try:
        Environment.model_validate(given)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            name = str(item["loc"][0])
            wrong.setdefault(name, expected(VARIABLES[name.upper()]))
    problems = []
    for name, wanted in wrong.items():
        text = given.pop(name)
        # What is before an @ may be a user name and password.
        found = "a value that is not shown" if name == "hf_token" or "@" in text else short_repr(text)
        problems.append(Problem(f"{name.upper()}: found {found}, expected {wanted}", "variable.invalid_value"))
    for name in sorted(name for name in environ if name.startswith("SEQTRACK_") and name not in VARIABLES):
        ours = [one for one in VARIABLES if one.startswith("SEQTRACK_")]
        problems.append(Problem(f"{name}: no such variable{did_you_mean(name, ours)}", "variable.unknown"))
    given.pop("hf_token", None)
    environment = Environment.model_validate(given)
    derived: dict[str, object] = {}
    if environment.phase == 2 and environment.resume_epoch is None:
        derived["resume_epoch"] = DEFAULT_RESUME_EPOCH
    if not environment.config:
        derived["config"] = "demo" if tuple(map(str.lower, environment.dataset)) == ("demo",) else "seqtrack_b256"
    if not environment.given("DATASET") and is_file_name(environment.config):
        derived["dataset"] = ()
    # What is derived does not count as given.
    return Environment.model_construct(environment.model_fields_set, **{**dict(environment), **derived}), problems
