"""The environment variables: types, defaults, meanings, and the configuration that they describe.

An empty variable is not set, because compose passes on empty ones. All malformed values are reported at once; whether
a folder, a class or a repository exists is checked where it is used. The token is never stored, so that it cannot
appear in a log or a report.
"""

import difflib
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from seqtrack.config.fields import Expected, Name, Pairs, Settings, expected, setting
from seqtrack.config.loader import is_file_name, load_config
from seqtrack.config.schema import Config
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import short_repr
from seqtrack.run_dir import RUN_FILE, phase_name

_DRAWN = ("demo", "nano")  # data sets with an experiment of the same name
# Commands that read a variable.
_RUNS, _DATA = "train, track, evaluate", "train, data, evaluate"
_UP, _HUB = "train, upload, hub", "train, data, upload, hub"
_TOKEN = r"^[!-~]+\Z"
_PORT = r":([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_URL = rf"(?a)^https?://[^/?#@:\s]+({_PORT})?(/[^?#@\s]*)?\Z"
_OWNER = r"(?!(datasets|models|spaces)/[^/]*\Z)(datasets/)?[A-Za-z0-9][\w.-]{0,95}"
_REPO = rf"(?a)^(?!.*(--|\.\.|[.-]/)){_OWNER}/\w[\w.-]{{0,95}}(?<![.-])(?<!\.git)\Z"
_PREFIX = r"(?a)^\w[\w.-]{0,95}(/\w[\w.-]{0,95}){0,9}\Z"
_NO_SLASH = AfterValidator(lambda url: url.rstrip("/"))
Token = Annotated[str, Field(pattern=_TOKEN), Expected("one word of ASCII letters")]
Target = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*:.+\Z"), Expected("kind:place, such as folder:/mnt/backup")]
HostPort = Annotated[str, Field(pattern=rf"(?a)^.+{_PORT}\Z"), Expected("host:port with a port from 1 to 65535")]
Address = Annotated[
    str, Field(pattern=_URL), _NO_SLASH, Expected("http:// or https:// and a host, no user, no password")
]
Repository = Annotated[str, Field(pattern=_REPO), Expected("owner/name or datasets/owner/name, as on the Hub")]
Prefix = Annotated[str, Field(pattern=_PREFIX), Expected("a/path of ASCII letters, digits, _, - and .")]
Overrides = Annotated[Pairs, Expected("KEY VALUE KEY VALUE with a blank between, and every quotation mark closed")]
# What UPLOAD_TARGET names after `huggingface:`, as HF_REPO does.
is_repository = re.compile(_REPO).match
# What .env may set besides: compose's names, and those of libraries, the network and the shell.
_OTHERS = (
    r"(?i)IMAGE|CUDA|GPUS|SHM_SIZE|MEMLOCK|TENSORBOARD_PORT|COMMIT|LOCK_DIGEST|UPLOAD_TUNING|JOB|PYTHON|VENV|PROCESSES|"
    r"PATH|HOME|USER|TZ|LANG|TMPDIR|TERM|COLUMNS|CI|REQUESTS_CA_BUNDLE|\w+_PROXY|(AWS|BUILDKIT|COMPOSE|CUBLAS|CUDA|CURL|"
    r"DOCKER|GIT|GLOO|HF|KMP|LC|LD|MALLOC|MKL|MPL|NCCL|NVIDIA|OMP|ONEDNN|OPENBLAS|PIP|PYTHON|PYTORCH|RUN|SSL|SLURM|TF|"
    r"THP|TORCH|UV|WANDB|XDG)_?\w*"
)
Processes = Annotated[int, Ge(1), Le(4096)] | Literal["auto"]
Epoch = Annotated[int, Ge(1), Expected("a whole number, at least 1, or latest")]


class Environment(Settings):
    """Every environment variable, as the field of its lower-case name. None and empty: the configuration decides."""

    # Python's expressions can look ahead and behind.
    model_config = ConfigDict(extra="ignore", validate_default=False, regex_engine="python-re")

    phase: Literal[1, 2] = setting(1, "1 trains from the start, 2 resumes phase 1", f"{_RUNS}, hub")
    resume_epoch: Epoch | None = setting(
        None, "epoch to continue after; unset, the beginning, or 3 in phase 2; `latest`: the Hub's, with `run`", "train"
    )
    config: str = setting(
        "", "experiment or .yaml path; unset, demo or nano for such a DATASET, else seqtrack_b256", "train"
    )
    dataset: tuple[Name, ...] = setting(
        ("demo",),
        "data sets, separated by commas; unset, demo, also with seqtrack_b256; nano and files of your own name theirs",
        _DATA,
    )
    classes: tuple[Name, ...] = setting((), "classes, separated by commas; unset, those of CONFIG", _DATA)
    data_dir: Path = setting(Path("./data"), "folder of the data sets", _DATA)
    output_dir: Path = setting(Path("./output"), "folder of phase_1, phase_2 and comparison", "every command")
    seed: int | None = setting(None, "seed of all random numbers: TRAIN.SEED", "train", ge=0, le=2**32 - 1)
    epochs: int | None = setting(None, "number of epochs: TRAIN.EPOCH", "train", ge=1)
    batch_size: int | None = setting(None, "samples per step of all processes: TRAIN.BATCH_SIZE", "train", ge=1)
    overrides: Overrides = setting((), "`KEY VALUE KEY VALUE` for any key, quoted as in a shell", "train")
    device: Literal["auto", "cuda", "cpu"] = setting("auto", "auto, cuda or cpu", _RUNS)
    nproc: Processes = setting(1, "processes of a run or evaluation; auto starts one per GPU", "train, evaluate")
    nnodes: int = setting(1, "machines of a run", "train", ge=1, le=1024)
    node_rank: int = setting(0, "number of this machine, from 0", "train", ge=0, le=1023)
    rendezvous: HostPort | None = setting(None, "host:port of machine 0, where machines meet", "train")
    stop_after_s: float | None = setting(
        None, "seconds after which a run saves and ends with exit code 75, before a session does", "train", gt=0, le=1e9
    )
    max_restarts: int = setting(0, "restarts of several processes when one dies", "train", ge=0, le=1000)
    hf_repo: Repository | None = setting(None, "owner/name or datasets/owner/name; unset, no uploads", _UP)
    hf_prefix: Prefix | None = setting(None, "folder in HF_REPO or UPLOAD_TARGET; unset, its root", _UP)
    hf_token: Token | None = setting(None, "access token; a file is safer, see HF_TOKEN_PATH", _HUB)
    hf_token_path: Path | None = setting(None, "file with the token, read at each use; wins over HF_TOKEN", _HUB)
    hf_endpoint: Address | None = setting(None, "address of the Hub; unset, huggingface.co", _HUB)
    hf_private: bool = setting(True, "whether a repository that is created is private", "upload, hub")
    hf_hub_disable_xet: bool | None = setting(
        None, "1 uploads over LFS alone, for a server without Xet; read by the Hub's client", "upload, hub"
    )
    upload_target: Target | None = setting(None, "another target than HF_REPO, such as folder:/mnt/backup", _UP)
    upload_min_commit_interval_s: float = setting(
        30.0, "least seconds between two commits; the Hub allows about 128 per hour", "upload", ge=0, le=3600
    )
    upload_grace_s: float = setting(
        60.0, "seconds after SIGTERM for the last files; below the container's grace", "upload", ge=0, le=1e6
    )
    upload_lag_limit_s: float = setting(
        3600.0, "seconds that a file may wait before the uploader is unhealthy", "upload", ge=0, le=1e9
    )
    upload_drain_s: float = setting(3600.0, "seconds for the last uploads after training", "run", ge=0, le=1e7)
    health_stale_s: float = setting(1800.0, "seconds without a log line until unhealthy", "healthcheck", ge=1, le=1e7)
    seqtrack_command: str = setting(
        "seqtrack", "how you start commands, for advice; set by scripts/local.sh and compose", "train"
    )
    seqtrack_test_data: Path | None = setting(None, "folder of real test data", "tests")
    seqtrack_goldens: Path | None = setting(None, "folder of reference outputs", "tests")

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


# Variables that set one key.
KEYS = {"CLASSES": "DATA.CLASSES", "SEED": "TRAIN.SEED", "EPOCHS": "TRAIN.EPOCH", "BATCH_SIZE": "TRAIN.BATCH_SIZE"}
VARIABLES = {name.upper(): field for name, field in Environment.model_fields.items()}


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Read every variable.

    Raises:
        UserError: every malformed one.
    """
    environment, problems = _read(environ)
    if problems:
        raise UserError(problems)
    return environment


def asks_for_latest_epoch(environ: Mapping[str, str]) -> bool:
    """Whether RESUME_EPOCH is `latest`: `run` replaces it by a number, and who does not train reads it as not set."""
    return environ.get("RESUME_EPOCH", "").strip().lower() == "latest"


def configure(environ: Mapping[str, str]) -> tuple[Environment, Config]:
    """Every variable, and the configuration of CONFIG, then the variables, then OVERRIDES.

    Raises:
        UserError: every problem of both.
    """
    environment, problems = _read(environ)
    # `lasot` is LASOT, as the authors write it; a name with capitals, such as GOT10K_vottrain, is unchanged.
    names = [name.upper() if name == name.lower() else name for name in environment.dataset]
    layer = [("DATASET", "DATA.TRAIN.DATASETS_NAME", ",".join(names))] if names else []
    layer += [("DATASET", "DATA.TRAIN.DATASETS_RATIO", ",".join("1" for _ in names))] if names else []
    layer += [(name, key, environ[name]) for name, key in KEYS.items() if environment.given(name)]
    try:
        config = load_config(environment.config, variables=layer, overrides=environment.overrides)
        # A run that exists keeps the value that it began with, which is checked where it is read.
        if environment.given("RESUME_EPOCH") or not os.access(environment.phase_folder() / RUN_FILE, os.F_OK):
            check_resume_epoch(environment.resume_epoch, config.TRAIN.EPOCH)
    except UserError as error:
        problems += error.problems
    near = {name: close for name, close in _similar(environ).items() if close}
    problems += [Problem(f"{name}{close}; rename or unset it", "variable.unknown") for name, close in near.items()]
    if problems:
        raise UserError(problems)
    return environment, config


def check_resume_epoch(epoch: int | None, last: int) -> None:
    """Raise a UserError if no epoch is left to train after `epoch`."""
    if epoch is not None and epoch >= last:
        text = f"RESUME_EPOCH {epoch} (of phase 2 unless set): no epoch of {last} is left; train more epochs"
        raise UserError(text, "config.resume_epoch")


def read_token(environ: Mapping[str, str]) -> str | None:
    """The access token: the content of HF_TOKEN_PATH, read at each call so that it can be replaced; else HF_TOKEN.

    Raises:
        UserError: a malformed variable, an unreadable file, or one without a token. Its content is never shown.
    """
    path = read_environment(environ).hf_token_path
    if path is None:
        return environ.get("HF_TOKEN", "").strip() or None
    try:
        token = str(path.read_text(encoding="utf-8", errors="replace")).strip()
    except OSError as error:
        raise UserError(f"HF_TOKEN_PATH: {path} cannot be read: {error.strerror}", "token.unreadable") from None
    if not re.match(_TOKEN, token):
        raise UserError(f"HF_TOKEN_PATH: {path} has no token; expected a single line", "token.malformed")
    return token


def load_dotenv_file(folder: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Add the variables of `folder/.env` that are not set, as compose does; the environment takes precedence.

    Raises:
        UserError: a line that is not `NAME=value`, which python-dotenv would skip; a name that is nobody's.
    """
    path = folder / ".env"
    if not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "dotenv.unreadable") from None
    if bad := [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]:
        # The line is not shown because it may contain the token.
        raise UserError([f"{path} line {line}: expected NAME=value" for line in bad], "dotenv.malformed")
    values = dotenv_values(stream=io.StringIO(text))
    absent = ": no such variable; docs/configuration.md lists all, and keys such as TRAIN.LR are set by OVERRIDES"
    unknown = {name: close for name, close in _similar(values).items() if close or not re.fullmatch(_OTHERS, name)}
    if unknown:
        raise UserError([f"{path}: {name}{close or absent}" for name, close in unknown.items()], "variable.unknown")
    for name, value in values.items():
        environ.setdefault(name, value or "")


def _similar(names: Iterable[str]) -> dict[str, str]:
    """For each name that is no variable what is wrong with it, if it is similar to one, else an empty string."""
    found = {name: difflib.get_close_matches(name, VARIABLES, 1, 0.85) for name in sorted(set(names) - set(VARIABLES))}
    return {name: f": no such variable; did you mean {near[0]}?" if near else "" for name, near in found.items()}


def _read(environ: Mapping[str, str]) -> tuple[Environment, list[Problem]]:
    """The valid variables, and the problems of the others."""
    given = {name.lower(): environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    if asks_for_latest_epoch(environ):
        del given["resume_epoch"]
    wrong = {}
    try:
        Environment.model_validate(given)
    except ValidationError as error:
        fields = {str(item["loc"][0]): Environment.model_fields[str(item["loc"][0])] for item in error.errors()}
        wrong = {name: expected(field.annotation, field.metadata) for name, field in fields.items()}
    line = f"printable letters in the locale's encoding, {sys.getfilesystemencoding()} (try LC_ALL=C.UTF-8)"
    wrong |= {name: line for name, text in given.items() if not text.isprintable()}
    problems = []
    for name, wanted in wrong.items():
        text = given.pop(name)
        # What is before an @ may be a user name and password.
        found = "a value that is not shown" if name == "hf_token" or "@" in text else short_repr(text)
        problems.append(Problem(f"{name.upper()}: found {found}, expected {wanted}", "variable.invalid_value"))
    given.pop("hf_token", None)
    environment = Environment.model_validate(given)
    derived = dict(environment)  # what is derived does not count as given
    if environment.phase == 2 and environment.resume_epoch is None:
        derived["resume_epoch"] = 3
    if not environment.config:
        name = ",".join(environment.dataset).lower()
        derived["config"] = name if name in _DRAWN else "seqtrack_b256"
    if not environment.given("DATASET") and (is_file_name(environment.config) or environment.config == "nano"):
        derived["dataset"] = ()
    return Environment.model_construct(environment.model_fields_set, **derived), problems
