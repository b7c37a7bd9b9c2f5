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

from seqtrack.commands.doctor_findings import Finding, bad, good, note
from seqtrack.commands.doctor_machine import nearest_folder
from seqtrack.errors import UserError

if TYPE_CHECKING:
    from seqtrack.config.environment import Environment
    from seqtrack.config.schema import Config

HUB = "https://huggingface.co"
# Beside checkpoints: logs, plots, an evaluation with its boxes, the sidecar's copies.
_OTHER_FILES = 2**30


def check_packages(lock: Path) -> Finding:
    """Whether what is installed is what the lock says for this Python."""
    from packaging.requirements import Requirement

    if not lock.is_file():
        return note("packages", f"{lock.name} is not beside the program, so nothing to compare with")
    lines = [Requirement(line) for line in re.findall(r"^([A-Za-z0-9][^\\\n]*)", lock.read_text(), re.MULTILINE)]
    locked = {line.name: str(line.specifier) for line in lines if line.marker is None or line.marker.evaluate()}
    wrong = []
    for name, version in locked.items():
        try:
            installed = f"=={metadata.version(name)}"
        except metadata.PackageNotFoundError:
            installed = " missing"
        # `+cu121` and the like name a build of the locked version.
        if installed.partition("+")[0] != version:
            wrong.append(f"{name}{installed} (lock: {version})")
    if wrong:
        advice = "Runs with other packages do not reproduce bit for bit: delete .venv and start scripts/local.sh again"
        return bad("packages", f"{len(wrong)} not as locked: {', '.join(wrong[:5])}", advice)
    return good("packages", f"as {lock.name} says ({len(locked)} packages)")


def check_settings(environ: Mapping[str, str]) -> tuple[list[Finding], "Environment | None", "Config | None"]:
    """Whether the environment variables and the configuration hold together."""
    from seqtrack.config.environment import configure

    try:
        environment, config = configure(environ)
    except UserError as error:
        return [bad("settings", problem, "See docs/configuration.md") for problem in error.problems], None, None
    dataset, target = ", ".join(environment.dataset) or "(as the file says)", environment.target or "nowhere"
    found = f"CONFIG={environment.config} DATASET={dataset}, uploads to {target}"
    return [good("settings", found)], environment, config


def bytes_needed(config: "Config") -> int:
    """Disk that a whole run takes, in bytes: what `plan` reckons for its checkpoints, and room for the rest."""
    from seqtrack.commands.plan import disk_bytes

    return disk_bytes(config) + _OTHER_FILES


def draws_demo(config: "Config") -> bool:
    """Whether the run trains on the data set that draws itself into the data folder."""
    return "DEMO" in (name.upper() for name in config.DATA.TRAIN.DATASETS_NAME)


def check_folder(about: str, folder: Path, *, write: bool) -> Finding:
    """Whether this user may use a folder, or make it."""
    place = nearest_folder(folder)
    who = f"user {os.geteuid()}"
    mode = os.R_OK | os.X_OK | (os.W_OK if write or place != folder else 0)
    if not place.is_dir():
        return bad(about, f"{place} is not a folder", "Name another one")
    if os.access(place, mode):
        return good(
            about, f"{folder} ({who} may {'write' if write else 'read'})" + ("" if place == folder else ", new")
        )
    owner = f"belongs to user {place.stat().st_uid}"
    advice = (
        f"sudo chown -R $(id -u):$(id -g) {folder}; in a container leave --user away: it then becomes the owner of the "
        "output folder by itself"
    )
    return bad(about, f"{place} {owner}, and {who} may not {'write' if mode & os.W_OK else 'read'} it", advice)


def check_data(environment: "Environment", config: "Config") -> list[Finding]:
    """Whether the training data opens; what is counted is what a run would count. Demo data is not drawn for this."""
    from seqtrack.prepare import open_sources

    demo = environment.data_dir / "demo"
    if draws_demo(config) and not demo.is_dir():
        return [note("data", f"demo: synthetic, drawn at first use into {demo} (45 MB)")]
    quiet = logging.getLogger("seqtrack.data")
    before, quiet.disabled = quiet.disabled, True
    try:
        sources = open_sources(config, environment.data_dir)
    except UserError as error:
        advice = "`seqtrack data check` lists everything; `seqtrack data download` fetches classes of LaSOT"
        return [bad("data", problem, advice) for problem in error.problems[:5]]
    finally:
        quiet.disabled = before
    return [
        good(
            "data",
            f"{source.name}{' (synthetic)' if source.synthetic else ''}: {len(source.sequences)} training sequences, "
            f"{sum(sequence.num_frames for sequence in source.sequences):,} frames",
        )
        for source in sources
    ]


def check_token(environment: "Environment", environ: Mapping[str, str]) -> list[Finding]:
    """Ask the Hub whose token this is, whether it may write, and whether the repository is there."""
    from seqtrack.config.environment import read_token

    if environment.hf_repo is None:
        return [note("token", "HF_REPO is not set: nothing is uploaded, no token is needed")]
    try:
        token = read_token(environ)
    except UserError as error:
        return [bad("token", problem, "Make the file readable, one line with the token") for problem in error.problems]
    if token is None:
        advice = (
            "Make one with write access at https://huggingface.co/settings/tokens and name its file in HF_TOKEN_PATH"
        )
        return [bad("token", f"HF_REPO={environment.hf_repo}, but neither HF_TOKEN_PATH nor HF_TOKEN is set", advice)]
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
        return [bad("token", classify(error, token=token).line, advice)]
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    found = f"the Hub knows it as {account.get('name', '?')}" + (f", role {role}" if role else "")
    if role == "read":
        return [bad("token", found, "It may not write: make one with write access at huggingface.co/settings/tokens")]
    state = "is there" if there else "will be made " + ("private" if environment.hf_private else "public")
    return [good("token", found), good("repository", f"{environment.hf_repo} {state}")]


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
