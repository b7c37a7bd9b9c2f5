"""`seqtrack doctor`: check this machine and these settings, one line each with what to do; exit code 0 or 1.

Reads the same environment variables as a run, calls the same code, and tries what a run needs; changes nothing. The
token is sent to the Hub and nowhere else, and no line shows it.
"""

import argparse
import os
import re
import resource
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi
from packaging.requirements import Requirement

from seqtrack.config.environment import Environment, configure, read_token
from seqtrack.errors import UserError
from seqtrack.process import ADDRESS_SPACE_WANTED, OPEN_FILES_WANTED
from seqtrack.uploads.errors import classify
from seqtrack.uploads.hub import bound_client

OK, NOTE, BAD = "ok", "note", "BAD"  # BAD: the run cannot work, or not well
LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"


class Finding(NamedTuple):
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
    yield from check_limits()
    yield check_packages()
    try:
        environment, config = configure(environ)
    except UserError as error:
        yield from (Finding("settings", BAD, problem, "See docs/configuration.md") for problem in error.problems)
        return
    dataset, target = ", ".join(environment.dataset) or "(those of the file)", environment.target or "nowhere"
    yield Finding("settings", OK, f"CONFIG={environment.config} DATASET={dataset}, uploads to {target}")
    yield from check_token(environment, environ)
    yield check_folder("output folder", environment.output_dir, os.R_OK | os.W_OK | os.X_OK)
    from seqtrack.commands import doctor_probe  # torch, which wrong limits or packages may keep from loading

    yield from doctor_probe.check_data(environment, config)
    yield from doctor_probe.check_device(environment, config)


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
    if locked := lock.is_file():
        lines = re.findall(r"^([A-Za-z0-9][^\\\n]*)", lock.read_text(), re.MULTILINE)
    else:
        lines = metadata.requires("seqtrack") or []
    wrong, missing = [], False
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                installed = metadata.version(requirement.name).partition("+")[0]  # `+cu121` names a build
                good = requirement.specifier.contains(installed, prereleases=True)
            except metadata.PackageNotFoundError:
                installed, good, missing = "missing", False, True
            if not good:
                wrong.append(f"{requirement.name} {installed} (expected {requirement.specifier})")
    if not wrong:
        return Finding("packages", OK, f"{len(lines)} as in {lock.name if locked else 'the package metadata'}")
    advice = "Only runs with the same packages are equal bit for bit: delete .venv and start scripts/local.sh again"
    return Finding(
        "packages", BAD if missing or locked else NOTE, f"{len(wrong)} differ: {', '.join(wrong[:5])}", advice
    )


def check_folder(about: str, folder: Path, mode: int) -> Finding:
    """Whether this user may use a folder, or create it."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if place.is_dir() and os.access(place, mode):
        return Finding(about, OK, f"{folder}" + ("" if place == folder else " (new)"))
    found = f"user {os.geteuid()} may not use {place}, a {'folder' if place.is_dir() else 'file'} of user"
    advice = f"sudo chown -R $(id -u):$(id -g) {folder}; in a container leave out --user"
    return Finding(about, BAD, f"{found} {place.stat().st_uid}", advice)


def check_token(environment: Environment, environ: Mapping[str, str]) -> list[Finding]:
    """Ask the Hub whose token this is, whether it may write, and whether the repository exists."""
    if environment.hf_repo is None:
        return [Finding("token", NOTE, "HF_REPO is not set: nothing is uploaded, no token is needed")]
    try:
        token = read_token(environ)
    except UserError as error:
        return [Finding("token", BAD, problem) for problem in error.problems]
    advice = "Create one with write access on the Hub's page settings/tokens and put its file's path into HF_TOKEN_PATH"
    if token is None:
        return [Finding("token", BAD, "HF_REPO is set, but neither HF_TOKEN_PATH nor HF_TOKEN", advice)]
    bound_client(read_s=20.0, tries=2)
    api = HfApi(endpoint=environment.hf_endpoint, token=token)
    try:
        account = api.whoami()
        kind = "dataset" if environment.hf_repo.startswith("datasets/") else "model"
        exists = api.repo_exists(environment.hf_repo.removeprefix("datasets/"), repo_type=kind)
    except Exception as error:  # noqa: BLE001 - whatever the client raises becomes one line without the token
        problem = classify(error, token=token).line
        return [Finding("token", BAD, problem, "Check the network, the clock, HF_ENDPOINT and the token")]
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    found = f"belongs to {account.get('name', '?')}, role {role or 'unknown'}"
    if role == "read":
        return [Finding("token", BAD, f"{found}: it may not write", advice)]
    state = "exists" if exists else f"will be created ({'private' if environment.hf_private else 'public'})"
    return [Finding("token", OK, f"{found}; {environment.hf_repo} {state}")]
