"""`seqtrack doctor`: check this machine and these settings, one line each with what to do; exit code 0 or 1.

Reads the same environment variables as a run, calls the same code, and tries what a run needs; changes nothing. The
token is sent to the Hub and nowhere else, and no line shows it.
"""

import argparse
import logging
import os
import re
import resource
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path

from huggingface_hub import HfApi
from packaging.requirements import Requirement

from seqtrack.commands.machine import GIB, nearest_folder
from seqtrack.config.environment import Environment, configure, read_token
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.process import ADDRESS_SPACE_WANTED, OPEN_FILES_WANTED
from seqtrack.uploads.errors import classify
from seqtrack.uploads.hub import bound_client
from seqtrack.uploads.target import Bounds

OK, NOTE, BAD = "ok", "note", "BAD"  # BAD: the run cannot work, or not well
NO_RUNTIME = 'could not select device driver "nvidia" with capabilities: [[gpu]]'  # Docker's message
HUB = "https://huggingface.co"
LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
_CLOCK_LIMIT_S = 300.0


@dataclass(frozen=True)
class Finding:
    """One line of output: what was checked, the level, what was found, and what to do about it."""

    about: str
    level: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.about}: {self.found}" + (f". {self.advice}" if self.advice else "")


def run(_args: argparse.Namespace) -> int:
    """Print every finding; 1 if any is BAD."""
    bad = 0
    for finding in _findings(os.environ):
        print(finding, flush=True)
        bad += finding.level == BAD
    print(f"{bad} to fix (marked BAD)" if bad else "everything is in order")
    return 1 if bad else 0


def _findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    from seqtrack.commands.doctor_probe import try_device  # torch, which limits may keep from loading

    yield from check_limits()  # first: what follows may fail because of them
    yield check_packages()
    try:
        environment, config = configure(environ)
    except UserError as error:
        yield from (Finding("settings", BAD, problem, "See docs/configuration.md") for problem in error.problems)
        return
    dataset, target = ", ".join(environment.dataset) or "(those of the file)", environment.target or "nowhere"
    yield Finding("settings", OK, f"CONFIG={environment.config} DATASET={dataset}, uploads to {target}")
    yield check_driver(environment.device)
    yield from try_device(environment, config)
    yield from check_room(environment, config)
    yield check_folder("output folder", environment.output_dir, write=True)
    yield check_folder("data folder", environment.data_dir, write=_uses_demo(config))
    yield from check_data(environment, config)
    yield from check_token(environment, environ)
    if environment.hf_repo is not None:
        yield check_clock(time.time(), hub_date(environment))


def check_limits() -> Iterator[Finding]:
    """What `ulimit` leaves this process."""
    for about, kind, wanted, advice in (
        ("open files (ulimit -n)", resource.RLIMIT_NOFILE, OPEN_FILES_WANTED, "Raise it: ulimit -n 4096"),
        ("address space (ulimit -v)", resource.RLIMIT_AS, ADDRESS_SPACE_WANTED, "Raise it: ulimit -v unlimited"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < wanted:
            yield Finding(about, BAD, f"{limit}, at least {wanted} are needed", advice)


def check_packages(lock: Path = LOCK) -> Finding:
    """Compare what is installed with the lock; for a package installed with pip, with its metadata."""
    if lock.is_file():
        lines = re.findall(r"^([A-Za-z0-9][^\\\n]*)", lock.read_text(), re.MULTILINE)
        advice = "Runs with other packages do not reproduce bit for bit: delete .venv and start scripts/local.sh again"
    else:
        lines = _requirements_of_the_package()
        advice = "Compare runs only with runs of the same versions; pip install --upgrade seqtrack updates them"
    wrong, missing = [], False
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name).partition("+")[0]  # `+cu121` names a build of the version
        except metadata.PackageNotFoundError:
            missing, installed = True, "missing"
        if installed == "missing" or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} (expected {requirement.specifier})")
    if wrong:
        level = BAD if missing or lock.is_file() else NOTE
        return Finding("packages", level, f"{len(wrong)} differ: {', '.join(wrong[:5])}", advice)
    return Finding("packages", OK, f"{len(lines)} as in {lock.name if lock.is_file() else 'the package metadata'}")


def _requirements_of_the_package() -> list[str]:
    try:
        return metadata.requires("seqtrack") or []
    except metadata.PackageNotFoundError:
        return []


def check_driver(device: str, *, nvidia_smi: str = "nvidia-smi") -> Finding:
    """Whether the NVIDIA driver answers. On a CPU machine its absence is only a note."""
    query = [nvidia_smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return Finding("driver", OK, "; ".join(answer.stdout.strip().splitlines()))
        reason = ((answer.stderr or answer.stdout).strip().splitlines() or ["nvidia-smi lists no GPU"])[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"nvidia-smi: {error}"
    advice = (
        f"In a container, start it with --gpus all; if Docker then reports '{NO_RUNTIME}', install "
        "nvidia-container-toolkit on the host and restart Docker. Without a GPU, add '-f compose.yaml -f "
        "compose.cpu.yaml' and train on the CPU"
    )
    return Finding("driver", BAD if device == "cuda" else NOTE, reason, advice)


def check_room(environment: Environment, config: Config) -> list[Finding]:
    """Memory and disk compared with what `plan` computes for the run."""
    from seqtrack.commands.plan import find_machine, make_plan  # torch, as above

    try:
        plan = make_plan(config, find_machine(environment))
    except UserError:  # of the device: reported when it was tried
        return []
    problems = {problem.code: problem for problem in plan["problems"]}
    found = {
        "memory": f"{plan['memory_there'] / GIB:.1f} GiB ({plan['memory_from']}), "
        f"about {plan['memory_needed'] / GIB:.1f} GiB needed",
        "disk": f"{plan['disk_there'] / GIB:.1f} GiB ({plan['disk_from']}), "
        f"about {plan['disk_bytes'] / GIB:.1f} GiB needed",
    }
    findings = [
        Finding(about, BAD, problems[f"plan.{about}"]) if f"plan.{about}" in problems else Finding(about, OK, text)
        for about, text in found.items()
    ]
    return findings + [
        Finding("host memory", BAD, text) for code, text in problems.items() if code == "plan.host_memory"
    ]


def check_folder(about: str, folder: Path, *, write: bool) -> Finding:
    """Whether this user may use a folder, or create it."""
    existing = nearest_folder(folder)
    user = f"user {os.geteuid()}"
    mode = os.R_OK | os.X_OK | (os.W_OK if write or existing != folder else 0)
    action = "write" if mode & os.W_OK else "read"
    if not existing.is_dir():
        return Finding(about, BAD, f"{existing} is not a folder", "Name another one")
    if os.access(existing, mode):
        return Finding(about, OK, f"{folder}: {user} may {action} it" + ("" if existing == folder else " (new)"))
    advice = (
        f"sudo chown -R $(id -u):$(id -g) {folder}; in a container leave out --user: the entrypoint then sets the owner"
        " of the output folder"
    )
    return Finding(
        about, BAD, f"{existing} belongs to user {existing.stat().st_uid}, and {user} may not {action} it", advice
    )


def _uses_demo(config: Config) -> bool:
    return "DEMO" in (name.upper() for name in config.DATA.TRAIN.DATASETS_NAME)


def check_data(environment: Environment, config: Config) -> list[Finding]:
    """Whether the training data opens, counted as a run counts it. Demo data is not drawn for this."""
    from seqtrack.training.build import open_sources  # torch, as above

    demo = environment.data_dir / "demo"
    if _uses_demo(config) and not demo.is_dir():
        return [Finding("data", NOTE, f"demo: synthetic, drawn at first use into {demo} (45 MB)")]
    logger = logging.getLogger("seqtrack.data")
    before, logger.disabled = logger.disabled, True
    try:
        sources = open_sources(config, environment.data_dir)
    except UserError as error:
        advice = "`seqtrack data check` lists everything; `seqtrack data download` fetches classes of LaSOT"
        return [Finding("data", BAD, problem, advice) for problem in error.problems[:5]]
    finally:
        logger.disabled = before
    counts = [(one.name, len(one.sequences), sum(sequence.num_frames for sequence in one.sequences)) for one in sources]
    return [
        Finding("data", OK, f"{name}: {count} training sequences, {frames:,} frames") for name, count, frames in counts
    ]


def check_token(environment: Environment, environ: Mapping[str, str]) -> list[Finding]:
    """Ask the Hub whose token this is, whether it may write, and whether the repository exists."""
    if environment.hf_repo is None:
        return [Finding("token", NOTE, "HF_REPO is not set: nothing is uploaded, no token is needed")]
    try:
        token = read_token(environ)
    except UserError as error:
        return [Finding("token", BAD, problem) for problem in error.problems]
    advice = f"Create one with write access at {HUB}/settings/tokens and put its file's path into HF_TOKEN_PATH"
    if token is None:
        found = f"HF_REPO={environment.hf_repo}, but neither HF_TOKEN_PATH nor HF_TOKEN is set"
        return [Finding("token", BAD, found, advice)]

    bound_client(Bounds(connect_s=10, read_s=20, tries=2))
    api = HfApi(endpoint=environment.hf_endpoint, token=token)
    try:
        account = api.whoami()
        kind = "dataset" if environment.hf_repo.startswith("datasets/") else "model"
        exists = api.repo_exists(environment.hf_repo.removeprefix("datasets/"), repo_type=kind)
    except Exception as error:  # noqa: BLE001 - whatever the client raises becomes one line without the token
        checks = f"Check the network, HF_ENDPOINT, and the token at {HUB}/settings/tokens"
        return [Finding("token", BAD, classify(error, token=token).line, checks)]
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    found = f"belongs to {account.get('name', '?')}, role {role or 'unknown'}"
    if role == "read":
        return [Finding("token", BAD, f"{found}: it may not write", advice)]
    state = "exists" if exists else f"will be created ({'private' if environment.hf_private else 'public'})"
    return [Finding("token", OK, found), Finding("repository", OK, f"{environment.hf_repo} {state}")]


def hub_date(environment: Environment) -> str | None:
    """The Hub's Date header, or None if it does not answer."""
    try:
        with urllib.request.urlopen((environment.hf_endpoint or HUB) + "/api/whoami-v2", timeout=10) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as refusal:  # a refusal carries the date as well
        headers = refusal.headers
    except OSError:
        return None
    return str(headers["Date"]) if headers["Date"] else None


def check_clock(now: float, server_date: str | None) -> Finding:
    """Compare the clock with a server's Date header: with a wrong clock, certificates and tokens are refused.

    Args:
        now: seconds since 1970, by this machine's clock.
        server_date: an HTTP date; None if no server answered.
    """
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if server_date is None:
        return Finding("clock", NOTE, f"{shown}, not compared: the Hub does not answer")
    difference_s = now - parsedate_to_datetime(server_date).timestamp()
    if abs(difference_s) <= _CLOCK_LIMIT_S:
        return Finding("clock", OK, shown)
    advice = "Set the clock: timedatectl set-ntp true; under WSL2, wsl --shutdown"
    return Finding("clock", BAD, f"{shown}, {difference_s:+.0f} s compared with the Hub", advice)
