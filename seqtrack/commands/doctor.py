"""`seqtrack doctor`: check this machine and these settings, one line each with what to do; exit code 0 or 1.

Reads the same environment variables as a run, asks the same code, and tries what a run will need; changes nothing.
"""

import argparse
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.commands.machine import GIB, free_memory
from seqtrack.errors import UserError
from seqtrack.process import ADDRESS_SPACE_WANTED, OPEN_FILES_WANTED

if TYPE_CHECKING:
    from seqtrack.config.environment import Environment
    from seqtrack.config.schema import Config

OK, NOTE, BAD = "ok", "note", "BAD"  # BAD: the run cannot work, or not well
# The engine's own words when a GPU is asked of it and it has no NVIDIA runtime.
NO_RUNTIME = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
_SHM_WANTED = 512 * 2**20
_CLOCK_LIMIT_S = 300.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, how it bears on a run, what was found, and what to do about it."""

    about: str
    level: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.about}: {self.found}" + (f". {self.advice}" if self.advice else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Looks at limits, packages, settings, folders, data, the token (asks the Hub whose it is, never shows it) and "
        "the clock, holds memory and disk against what `plan` says, and tries the device in processes like those of "
        "training: a matrix product, attention in the precision of the run, a checkpoint's memory, an exchange."
    )


def run(_args: argparse.Namespace) -> int:
    """Print every finding; 1 if one of them is an obstacle."""
    obstacles = 0
    for finding in _findings():
        print(finding, flush=True)
        obstacles += finding.level == BAD
    print("everything is in order" if not obstacles else f"{obstacles} to fix (marked BAD)")
    return 1 if obstacles else 0


def _findings() -> Iterator[Finding]:
    yield from check_limits()  # first: what follows may fail for them
    from seqtrack.commands import doctor_project as project
    from seqtrack.commands.doctor_probe import try_device

    settings, environment, config = project.check_settings(os.environ)
    yield from settings
    yield project.check_packages()
    yield check_driver(environment.device if environment else "auto")
    if environment is not None and config is not None:
        yield from try_device(environment, config)
        yield from check_room(environment, config)
    else:
        yield Finding("memory", OK, _gib(*free_memory()))
    yield check_shared_memory()
    yield Finding("cores", OK, f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    date = None
    if environment is not None and config is not None:
        yield project.check_folder("output folder", environment.output_dir, write=True)
        yield project.check_folder("data folder", environment.data_dir, write=project.draws_demo(config))
        yield from project.check_data(environment, config)
        yield from project.check_token(environment, os.environ)
        date = project.hub_date(environment)
    yield check_clock(time.time(), server_date=date, known_past=Path(__file__).stat().st_mtime)


def _gib(count: int, source: str) -> str:
    return f"{count / GIB:.1f} GiB ({source})"


def check_driver(device: str, *, nvidia_smi: str = "nvidia-smi") -> Finding:
    """Whether the NVIDIA driver answers. On a CPU machine its absence is only a note."""
    query = [nvidia_smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return Finding("driver", OK, "; ".join(answer.stdout.strip().splitlines()))
        reason = ((answer.stderr or answer.stdout).strip().splitlines() or ["nvidia-smi lists no GPU"])[0]
    except OSError:
        reason = "nvidia-smi is not there"
    except subprocess.TimeoutExpired:
        reason = "nvidia-smi does not answer"
    advice = (
        f"In a container, start it with --gpus all; should the engine then say '{NO_RUNTIME}', the NVIDIA Container "
        "Toolkit is missing on the host (install nvidia-container-toolkit, then restart Docker). Without a GPU, add "
        "'-f compose.yaml -f compose.cpu.yaml' and train on the CPU"
    )
    return Finding("driver", BAD if device == "cuda" else NOTE, reason, advice)


def check_room(environment: "Environment", config: "Config") -> list[Finding]:
    """Memory and disk against what `plan` says that the run needs."""
    from seqtrack.commands.plan import find_machine, make_plan

    try:
        plan: dict[str, Any] = make_plan(config, find_machine(environment))
    except UserError:  # of the device, which was reported when it was tried
        return []
    findings = []
    for about, there, needed in (("memory", "memory", "memory_needed"), ("disk", "disk", "disk_bytes")):
        bad = [problem for problem in plan["problems"] if problem.startswith(about)]
        found = f"{_gib(plan[there + '_there'], plan[there + '_from'])}, about {plan[needed] / GIB:.1f} GiB needed"
        findings.append(Finding(about, BAD, bad[0].partition(": ")[2]) if bad else Finding(about, OK, found))
    return findings + [Finding("host memory", BAD, p) for p in plan["problems"] if p.code == "plan.host_memory"]


def check_limits() -> list[Finding]:
    """What `ulimit` leaves this process."""
    findings = []
    for about, kind, wanted, advice in (
        ("open files (ulimit -n)", resource.RLIMIT_NOFILE, OPEN_FILES_WANTED, "Raise it: ulimit -n 4096"),
        ("address space (ulimit -v)", resource.RLIMIT_AS, ADDRESS_SPACE_WANTED, "Raise it: ulimit -v unlimited"),
    ):
        limit = resource.getrlimit(kind)[0]
        found = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        if limit == resource.RLIM_INFINITY or limit >= wanted:
            findings.append(Finding(about, OK, found))
        else:
            findings.append(Finding(about, BAD, f"{found}, at least {wanted} are needed", advice))
    return findings


def check_shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    """The GPUs of one machine exchange gradients here; nothing else of this program needs it."""
    size = shutil.disk_usage(place).total if place.is_dir() else 0
    if size >= _SHM_WANTED:
        return Finding("shared memory", OK, f"{size / 2**20:.0f} MiB")
    advice = "Training on several GPUs may need more: docker run --shm-size 2g"
    return Finding("shared memory", NOTE, f"only {size / 2**20:.0f} MiB at {place}", advice)


def check_clock(now: float, *, server_date: str | None, known_past: float) -> Finding:
    """Whether the clock is right, against a server's Date header, or else against a moment that is surely past.

    Args:
        now: seconds since 1970, by this machine's clock.
        server_date: an HTTP date, if a server was asked.
        known_past: the age of a file that came with the program.
    """
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    advice = "Set the clock (timedatectl set-ntp true): certificates and tokens are refused by a wrong one"
    off_s = now - parsedate_to_datetime(server_date).timestamp() if server_date else min(0.0, now - known_past)
    if abs(off_s) > (_CLOCK_LIMIT_S if server_date else 0):
        than = "the Hub's" if server_date else "this program's files"
        return Finding(
            "clock", BAD, f"{shown}, {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} {than}", advice
        )
    return Finding("clock", OK, shown + (", as the Hub's" if server_date else ""))
