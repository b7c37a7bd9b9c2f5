"""The environment variables: types, defaults, meanings, and the configuration that they describe.

An empty variable is not set, because compose passes on empty ones. All malformed values are reported at once; whether
a folder, a class or a repository exists is checked where it is used. The token is never stored, so that it cannot
appear in a log or a report.
"""

import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError

from seqtrack.config.fields import Expected, Name, Settings, did_you_mean, expected, setting
from seqtrack.config.loader import is_file_name, load_config
from seqtrack.config.schema import Config
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import short_repr
from seqtrack.run_dir import phase_name

# The epoch that phase 2 resumes after by default.
DEFAULT_RESUME_EPOCH = 3

_REPOSITORY = re.compile(r"(datasets/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}", re.ASCII)
_SECRET = frozenset({"HF_TOKEN"})


def _require(good: Any) -> None:
    if not good:
        raise ValueError("malformed")


def _line(value: str) -> str:
    _require(value.isprintable())
    return value


def _host_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    _require(host and port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    return value


def _different(value: tuple[str, ...]) -> tuple[str, ...]:
    _require(len(set(value)) == len(value))
    return value


def _pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = shlex.split(value)
    _require(len(parts) % 2 == 0)
    return tuple(zip(parts[::2], parts[1::2], strict=True))


def _repository(value: str) -> str:
    _require(_REPOSITORY.fullmatch(value) and "--" not in value and ".." not in value)
    _require(not value.endswith((".git", "-", ".")) and "./" not in value and "-/" not in value)
    return value


def _token(value: str) -> str:
    _require(value and value.isascii() and value.isprintable() and " " not in value)
    return value


def _address(value: str) -> str:
    parts = urlsplit(value)
    _require(parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc)
    _require((parts.port is None or parts.port > 0) and not parts.query and not parts.fragment)
    _require(value.isprintable() and " " not in value)
    return value.rstrip("/")


def _target(value: str) -> str:
    _require(re.fullmatch(r"[a-z][a-z0-9_]*:.+", value) and value.isprintable())
    return value


Text = Annotated[str, AfterValidator(_line), Expected("text on one line")]
HostPort = Annotated[str, AfterValidator(_host_port), Expected("host:port with a port from 1 to 65535")]
Names = Annotated[tuple[Name, ...], AfterValidator(_different), Expected("different names separated by commas")]
Pairs = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_pairs),
    Expected("KEY VALUE KEY VALUE with a blank between, and every quotation mark closed"),
]
Repository = Annotated[
    str, AfterValidator(_repository), Expected("owner/name or datasets/owner/name, as in the repository's address")
]
Token = Annotated[str, AfterValidator(_token), Expected("one word of ASCII letters")]
Address = Annotated[
    str, AfterValidator(_address), Expected("http:// or https:// and a host, without a user name or password")
]
Target = Annotated[str, AfterValidator(_target), Expected("kind:place, such as folder:/mnt/backup")]


class Environment(Settings):
    """Every environment variable, as the field of its lower-case name. None and empty: the configuration decides."""

    model_config = ConfigDict(extra="ignore", validate_default=False)

    phase: Literal[1, 2] = setting(
        1, "1 trains from the start, 2 resumes phase 1", reader="train, track, evaluate, hub"
    )
    resume_epoch: int | None = setting(
        None,
        "epoch after which the run continues; unset, phase 1 starts at the beginning and phase 2 at epoch 3; the "
        "entrypoint takes `latest` as well: the last one on the Hub, or the beginning",
        reader="train",
        ge=1,
    )
    config: Text = setting(
        "",
        "experiment, or a path that ends in .yaml; unset, demo for the demo data set, else seqtrack_b256",
        reader="train",
    )
    dataset: Names = setting(
        ("demo",),
        "data sets, separated by commas: demo, lasot, got10k_train_full, got10k_vottrain; unset with a CONFIG file of "
        "your own, those that the file names",
        reader="train, data, evaluate",
    )
    classes: Names = setting((), "classes, separated by commas; unset, those of CONFIG", reader="train, data, evaluate")
    data_dir: Path = setting(Path("./data"), "folder of the data sets", reader="train, data, evaluate")
    output_dir: Path = setting(
        Path("./output"), "folder that holds phase_1, phase_2 and comparison", reader="every command"
    )
    seed: int | None = setting(None, "TRAIN.SEED", reader="train", ge=0, le=2**32 - 1)
    epochs: int | None = setting(None, "TRAIN.EPOCH", reader="train", ge=1)
    batch_size: int | None = setting(
        None, "TRAIN.BATCH_SIZE: samples per step over all processes", reader="train", ge=1
    )
    overrides: Pairs = setting((), "`KEY VALUE KEY VALUE` for any key, quoted as in a shell", reader="train")
    device: Literal["auto", "cuda", "cpu"] = setting("auto", "auto, cuda or cpu", reader="train, track, evaluate")
    nproc: Annotated[int, Ge(1), Le(4096)] | Literal["auto"] = setting(
        1, "processes of a run; auto starts one per GPU", reader="train"
    )
    nnodes: int = setting(1, "machines of a run", reader="train", ge=1, le=1024)
    node_rank: int = setting(0, "number of this machine, from 0", reader="train", ge=0, le=1023)
    rendezvous: HostPort | None = setting(None, "host:port of machine 0, where machines meet", reader="train")
    max_restarts: int = setting(
        0, "how often a run of several processes is restarted when one dies", reader="train", ge=0, le=1000
    )
    hf_repo: Repository | None = setting(
        None, "repository owner/name, or datasets/owner/name; unset, nothing is uploaded", reader="train, upload, hub"
    )
    hf_token: Token | None = setting(
        None, "access token; a file is safer, see HF_TOKEN_PATH", reader="train, data, upload, hub"
    )
    hf_token_path: Path | None = setting(
        None,
        "file with the access token, read again at each use; wins over HF_TOKEN",
        reader="train, data, upload, hub",
    )
    hf_endpoint: Address | None = setting(
        None, "address of the Hub; unset, huggingface.co", reader="train, data, upload, hub"
    )
    hf_private: bool = setting(True, "whether a repository that is created is private", reader="upload, hub")
    hf_hub_disable_xet: bool | None = setting(
        None,
        "1 uploads over LFS alone, for a server that does not speak Xet; read by the Hub's client",
        reader="upload, hub",
    )
    upload_target: Target | None = setting(
        None, "another target than HF_REPO, such as folder:/mnt/backup", reader="train, upload, hub"
    )
    upload_min_commit_interval_s: float = setting(
        30.0, "least seconds between two commits; the Hub allows about 128 an hour", reader="upload", ge=0, le=3600
    )
    upload_grace_s: float = setting(
        60.0, "seconds after SIGTERM for the last files; below the container's grace", reader="upload", ge=0, le=1e6
    )
    upload_lag_limit_s: float = setting(
        3600.0,
        "age of the oldest file not yet uploaded at which the uploader is unhealthy",
        reader="upload",
        ge=0,
        le=1e9,
    )
    upload_drain_s: float = setting(
        3600.0,
        "seconds that a container without compose waits for its uploader after training",
        reader="entrypoint",
        ge=0,
        le=1e7,
    )
    health_stale_s: float = setting(
        1800.0,
        "seconds without a log line after which the container of a training run is unhealthy",
        reader="healthcheck",
        ge=1,
        le=1e7,
    )
    seqtrack_test_data: Path | None = setting(None, "folder of real test data", reader="tests")
    seqtrack_goldens: Path | None = setting(None, "folder of reference outputs", reader="tests")

    def given(self, name: str) -> bool:
        """Whether the user set this variable: a default must not override the user's file."""
        return name.lower() in self.model_fields_set

    @property
    def target(self) -> str | None:
        """The upload target as the user wrote it: UPLOAD_TARGET, else HF_REPO; None uploads nothing."""
        return self.upload_target or self.hf_repo

    def phase_folder(self, phase: int | None = None) -> Path:
        """The run folder of a phase, by default of this one."""
        return self.output_dir / phase_name(phase or self.phase)


VARIABLES = {name.upper(): field for name, field in Environment.model_fields.items()}


def read_environment(environ: Mapping[str, str], *, known_datasets: Collection[str] = ()) -> Environment:
    """Read every variable.

    Args:
        environ: usually `os.environ`.
        known_datasets: if given, DATASET may only contain these.

    Raises:
        UserError: every malformed variable, and every unknown SEQTRACK_ one.
    """
    environment, problems = _read(environ, known_datasets)
    if problems:
        raise UserError(problems)
    return environment


def resolve(environment: Environment) -> Config:
    """The configuration of an environment: CONFIG, then the variables, then OVERRIDES.

    Raises:
        UserError: every problem of the configuration.
    """
    layer: list[tuple[str, tuple[str, str]]] = []
    if environment.dataset:
        names = [_dataset_key(one) for one in environment.dataset]
        layer.append(("DATASET", ("DATA.TRAIN.DATASETS_NAME", ",".join(names))))
        layer.append(("DATASET", ("DATA.TRAIN.DATASETS_RATIO", ",".join("1" for _ in names))))
    if environment.classes:
        layer.append(("CLASSES", ("DATA.CLASSES", ",".join(environment.classes))))
    for variable, key in (("SEED", "TRAIN.SEED"), ("EPOCHS", "TRAIN.EPOCH"), ("BATCH_SIZE", "TRAIN.BATCH_SIZE")):
        value = getattr(environment, variable.lower())
        if value is not None:
            layer.append((variable, (key, str(value))))
    config = load_config(
        environment.config, environment=layer, overrides=environment.overrides, overrides_from="OVERRIDES"
    )
    epoch, last = environment.resume_epoch, config.TRAIN.EPOCH
    if epoch is not None and epoch >= last:
        origin = "RESUME_EPOCH" if environment.given("RESUME_EPOCH") else "RESUME_EPOCH, unset and so"
        remedy = f"use at most {last - 1}" if last > 1 else "train more than one epoch"
        raise UserError(
            f"{origin} {epoch}: no epoch of {last} is left to train; {remedy}",
            code="config.resume_epoch",
        )
    return config


def configure(environ: Mapping[str, str], *, known_datasets: Collection[str] = ()) -> tuple[Environment, Config]:
    """`read_environment` and `resolve`, with the problems of both reported together."""
    environment, problems = _read(environ, known_datasets)
    try:
        config = resolve(environment)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    if problems:
        raise UserError(problems)
    return environment, config


def read_variable(environ: Mapping[str, str], name: str) -> Any:
    """The value of one variable, or its default.

    Raises:
        UserError: it is malformed.
    """
    environment, problems = _read({name: environ.get(name, "")}, ())
    if problems:
        raise UserError(problems)
    return getattr(environment, name.lower())


def read_token(environ: Mapping[str, str]) -> str | None:
    """The access token: the content of HF_TOKEN_PATH, read at each call so that it can be replaced; else HF_TOKEN.

    Raises:
        UserError: the file cannot be read or has no token. The message has the file's path, never its content.
    """
    path = read_variable(environ, "HF_TOKEN_PATH")
    if path is None:
        _check_only({"HF_TOKEN": environ.get("HF_TOKEN", "")})
        return environ.get("HF_TOKEN", "").strip() or None
    try:
        return _token(path.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise UserError(f"HF_TOKEN_PATH: {path} cannot be read: {error.strerror}", "token.unreadable") from None
    except ValueError:
        raise UserError(f"HF_TOKEN_PATH: {path} has no token; expected a single line", "token.malformed") from None


def load_dotenv_file(folder: Path, environ: MutableMapping[str, str] | None = None) -> Path | None:
    """Add the variables of `folder/.env` that are not set, as compose does; the environment takes precedence.

    Returns:
        The file, or None if there is none.

    Raises:
        UserError: a line that is not `NAME=value`, which python-dotenv would skip.
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
        raise UserError(f"{path}: cannot be read: {error}", "dotenv.unreadable") from None
    if bad:
        # The line is not shown because it may contain the token.
        raise UserError([f"{path} line {line}: expected NAME=value" for line in bad], "dotenv.malformed")
    for name, value in dotenv_values(path, encoding="utf-8").items():
        if value is not None:
            target.setdefault(name, value)
    return path


def _check_only(environ: Mapping[str, str]) -> None:
    _, problems = _read(environ, ())
    if problems:
        raise UserError(problems)


def _unprintable(text: str) -> str:
    """What is expected instead of a text with an invalid character; empty if there is none."""
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        encoding = sys.getfilesystemencoding()
        return f"text in the locale's encoding, which is {encoding}: set LC_ALL=C.UTF-8"
    wrong = next((letter for letter in text if not letter.isprintable()), None)
    return "" if wrong is None else f"text on one line; U+{ord(wrong):04X} cannot be printed"


def _read(environ: Mapping[str, str], known_datasets: Collection[str]) -> tuple[Environment, list[Problem]]:
    given = {name.lower(): environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    problems: dict[str, Problem] = {}
    try:
        Environment.model_validate(given)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False):
            name = str(item["loc"][0]).upper()
            text = given.pop(name.lower(), None)
            if text is not None:
                # What is before an @ may be a user name and password.
                found = "a value that is not shown" if name in _SECRET or "@" in text else short_repr(text)
                wanted = _unprintable(text) or expected(VARIABLES[name])
                problems[name] = Problem(f"{name}: found {found}, expected {wanted}", "variable.invalid_value")
    given.pop("hf_token", None)
    for name in sorted(set(environ) - set(VARIABLES)):
        if name.startswith("SEQTRACK_"):
            ours = [one for one in VARIABLES if one.startswith("SEQTRACK_")]
            problems[name] = Problem(f"{name}: no such variable{did_you_mean(name, ours)}", "variable.unknown")
    environment = Environment.model_validate(given)
    known = {one.upper(): one for one in known_datasets}
    for one in environment.dataset:
        if known and one.upper() not in known:
            problems[one] = Problem(f"DATASET: no data set {one}{did_you_mean(one, known)}", "variable.unknown_dataset")
    derived: dict[str, Any] = {}
    if environment.phase == 2 and environment.resume_epoch is None:
        derived["resume_epoch"] = DEFAULT_RESUME_EPOCH
    if not environment.config:
        derived["config"] = "demo" if tuple(map(str.lower, environment.dataset)) == ("demo",) else "seqtrack_b256"
    if not environment.given("DATASET") and is_file_name(environment.config):
        derived["dataset"] = ()
    set_by_user = environment.model_fields_set
    environment = environment.model_copy(update=derived)
    environment.__pydantic_fields_set__.clear()
    environment.__pydantic_fields_set__.update(set_by_user)
    return environment, list(problems.values())


def _dataset_key(name: str) -> str:
    """`lasot` as the authors write it, LASOT; a name with capitals, such as GOT10K_vottrain, is unchanged."""
    return name.upper() if name == name.lower() else name
