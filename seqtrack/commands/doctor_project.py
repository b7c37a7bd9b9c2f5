"""The doctor's checks of this project's side: packages, settings, folders, data, token.

Reads the same environment variables as a run and asks the same code; changes nothing. The token is sent to the Hub and
nowhere else, and no line shows it.
"""

import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.commands.doctor import BAD, NOTE, OK, Finding
from seqtrack.commands.machine import nearest_folder
from seqtrack.errors import UserError

if TYPE_CHECKING:
    from seqtrack.config.environment import Environment
    from seqtrack.config.schema import Config

HUB = "https://huggingface.co"
ROOT = Path(__file__).resolve().parents[2]


def check_packages(lock: Path = ROOT / "requirements.lock") -> Finding:
    """Whether what is installed is what the lock says; for a package installed with pip, what its metadata says."""
    from packaging.requirements import Requirement

    from seqtrack.runtime.environment import versions

    if lock.is_file():
        lines = [Requirement(line) for line in re.findall(r"^([A-Za-z0-9][^\\\n]*)", lock.read_text(), re.MULTILINE)]
    else:
        try:
            lines = [Requirement(line) for line in metadata.requires("seqtrack") or []]
        except metadata.PackageNotFoundError:
            lines = []
    wrong = []
    for line in lines:
        if line.marker is not None and not line.marker.evaluate({"extra": ""}):
            continue
        try:
            # `+cu121` and the like name a build of the version.
            installed = metadata.version(line.name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed == "missing" or not line.specifier.contains(installed, prereleases=True):
            wrong.append(f"{line.name} {installed} (expected {line.specifier})")
    if wrong and lock.is_file():
        advice = "Runs with other packages do not reproduce bit for bit: delete .venv and start scripts/local.sh again"
        return Finding("packages", BAD, f"{len(wrong)} not as locked: {', '.join(wrong[:5])}", advice)
    if wrong:
        advice = "Compare runs only with runs of the same versions; pip install --upgrade seqtrack brings them"
        missing = any("missing" in one for one in wrong)
        return Finding("packages", BAD if missing else NOTE, f"not as the package asks: {', '.join(wrong[:5])}", advice)
    if lock.is_file():
        return Finding("packages", OK, f"as {lock.name} says ({len(lines)} packages)")
    return Finding("packages", OK, ", ".join(f"{name} {version}" for name, version in versions().items()))


def check_settings(environ: Mapping[str, str]) -> tuple[list[Finding], "Environment | None", "Config | None"]:
    """Whether the environment variables and the configuration hold together."""
    from seqtrack.config.environment import configure

    try:
        environment, config = configure(environ)
    except UserError as error:
        advice = "See docs/configuration.md"
        return [Finding("settings", BAD, problem, advice) for problem in error.problems], None, None
    dataset, target = ", ".join(environment.dataset) or "(as the file says)", environment.target or "nowhere"
    found = f"CONFIG={environment.config} DATASET={dataset}, uploads to {target}"
    return [Finding("settings", OK, found)], environment, config


def draws_demo(config: "Config") -> bool:
    """Whether the run trains on the data set that draws itself into the data folder."""
    return "DEMO" in (name.upper() for name in config.DATA.TRAIN.DATASETS_NAME)


def check_folder(about: str, folder: Path, *, write: bool) -> Finding:
    """Whether this user may use a folder, or make it."""
    place = nearest_folder(folder)
    who = f"user {os.geteuid()}"
    mode = os.R_OK | os.X_OK | (os.W_OK if write or place != folder else 0)
    if not place.is_dir():
        return Finding(about, BAD, f"{place} is not a folder", "Name another one")
    if os.access(place, mode):
        return Finding(
            about, OK, f"{folder} ({who} may {'write' if write else 'read'})" + ("" if place == folder else ", new")
        )
    owner = f"belongs to user {place.stat().st_uid}"
    advice = (
        f"sudo chown -R $(id -u):$(id -g) {folder}; in a container leave --user away: it then becomes the owner of the "
        "output folder by itself"
    )
    return Finding(about, BAD, f"{place} {owner}, and {who} may not {'write' if mode & os.W_OK else 'read'} it", advice)


def check_data(environment: "Environment", config: "Config") -> list[Finding]:
    """Whether the training data opens; what is counted is what a run would count. Demo data is not drawn for this."""
    from seqtrack.training.build import open_sources

    demo = environment.data_dir / "demo"
    if draws_demo(config) and not demo.is_dir():
        return [Finding("data", NOTE, f"demo: synthetic, drawn at first use into {demo} (45 MB)")]
    quiet = logging.getLogger("seqtrack.data")
    before, quiet.disabled = quiet.disabled, True
    try:
        sources = open_sources(config, environment.data_dir)
    except UserError as error:
        advice = "`seqtrack data check` lists everything; `seqtrack data download` fetches classes of LaSOT"
        return [Finding("data", BAD, problem, advice) for problem in error.problems[:5]]
    finally:
        quiet.disabled = before
    return [
        Finding(
            "data",
            OK,
            f"{source.name}{' (synthetic)' if source.synthetic else ''}: {len(source.sequences)} training sequences, "
            f"{sum(sequence.num_frames for sequence in source.sequences):,} frames",
        )
        for source in sources
    ]


def check_token(environment: "Environment", environ: Mapping[str, str]) -> list[Finding]:
    """Ask the Hub whose token this is, whether it may write, and whether the repository is there."""
    from seqtrack.config.environment import read_token

    if environment.hf_repo is None:
        return [Finding("token", NOTE, "HF_REPO is not set: nothing is uploaded, no token is needed")]
    try:
        token = read_token(environ)
    except UserError as error:
        return [
            Finding("token", BAD, problem, "Make the file readable, one line with the token")
            for problem in error.problems
        ]
    if token is None:
        advice = (
            "Make one with write access at https://huggingface.co/settings/tokens and name its file in HF_TOKEN_PATH"
        )
        return [
            Finding(
                "token", BAD, f"HF_REPO={environment.hf_repo}, but neither HF_TOKEN_PATH nor HF_TOKEN is set", advice
            )
        ]
    return _ask_hub(environment, token)


def _ask_hub(environment: "Environment", token: str) -> list[Finding]:
    from huggingface_hub import HfApi

    from seqtrack.uploads.errors import classify
    from seqtrack.uploads.hubclient import Limits, bound_client

    bound_client(Limits(connect_s=10, read_s=20, tries=2))
    api = HfApi(endpoint=environment.hf_endpoint, token=token)
    assert environment.hf_repo is not None  # the caller asked
    try:
        account = api.whoami()
        there = api.repo_exists(environment.hf_repo)
    except Exception as error:  # noqa: BLE001  whatever a client raises is told in one classified line, without the token
        advice = "Check the network, HF_ENDPOINT, and the token at https://huggingface.co/settings/tokens"
        return [Finding("token", BAD, classify(error, token=token).line, advice)]
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    found = f"the Hub knows it as {account.get('name', '?')}" + (f", role {role}" if role else "")
    if role == "read":
        return [
            Finding(
                "token", BAD, found, "It may not write: make one with write access at huggingface.co/settings/tokens"
            )
        ]
    state = "is there" if there else "will be made " + ("private" if environment.hf_private else "public")
    return [Finding("token", OK, found), Finding("repository", OK, f"{environment.hf_repo} {state}")]


def hub_date(environment: "Environment") -> str | None:
    """The Hub's Date header, or None if it is not used or does not answer."""
    if environment.hf_repo is None:
        return None
    address = (environment.hf_endpoint or HUB).rstrip("/") + "/api/whoami-v2"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refusal:  # a refusal carries the date as well
        date = refusal.headers.get("Date")
    except OSError:
        return None
    return str(date) if date else None
