"""`seqtrack doctor`: check this machine and these settings, one line each with what to do; exit code 0 or 1."""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqtrack.commands.doctor_findings import Finding

_ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Looks at the driver, the GPU against the torch build, memory, shared memory, disk, folder rights, packages, "
        "settings, data, the token (asks the Hub whose it is, never shows it) and the clock. Changes nothing."
    )


def run(_args: argparse.Namespace) -> int:
    """Print every finding; 1 if one of them is an obstacle."""
    from seqtrack.commands.doctor_findings import Level

    obstacles = 0
    for finding in _findings():
        print(finding, flush=True)
        obstacles += finding.level is Level.BAD
    print("everything is in order" if not obstacles else f"{obstacles} to mend (marked BAD)")
    return 1 if obstacles else 0


def _findings() -> Iterator["Finding"]:
    from seqtrack.commands import doctor_machine as machine
    from seqtrack.commands import doctor_project as project

    settings, environment, config = project.check_settings(os.environ)
    device = environment.device if environment else "auto"
    yield from settings
    yield project.check_packages(_ROOT / "requirements.lock")
    yield machine.check_driver(device)
    yield from machine.check_gpus(device)
    yield machine.check_memory()
    yield machine.check_shared_memory()
    yield machine.check_cores()
    if environment is not None and config is not None:
        yield project.check_folder("output folder", environment.output_dir, write=True)
        yield machine.check_disk("disk", environment.output_dir, project.bytes_needed(config))
        yield project.check_folder("data folder", environment.data_dir, write=project.draws_demo(config))
        yield from project.check_data(environment, config)
        yield from project.check_token(environment, os.environ)
    date = project.hub_date(environment) if environment is not None else None
    yield machine.check_clock(time.time(), server_date=date, known_past=(_ROOT / "requirements.lock").stat().st_mtime)
