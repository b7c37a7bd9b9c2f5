"""`seqtrack doctor`: check this machine and these settings, one line each with what to do; exit code 0 or 1.

Calls the code of a run and changes nothing. The token is sent to the Hub only, and no line shows it. The device is
tried in processes like those of training, which execute this module and end themselves after two minutes.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import HfApi
from packaging.requirements import Requirement

from seqtrack.config.environment import Environment, configure, read_token
from seqtrack.config.schema import Config
from seqtrack.data.sources import DRAWN
from seqtrack.errors import Problem, RunError, UserError, as_typed
from seqtrack.packages import installed_packages
from seqtrack.process import end_with_parent, terminal_columns
from seqtrack.runtime.launcher import Ending, launch, leave_ending
from seqtrack.uploads.hub import bound_client, classify

OK, NOTE, BAD = "ok", "note", "BAD"  # BAD: the run cannot work, or not well
LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
NO_GPU = (
    "In a container, start it with --gpus all; if Docker then reports 'could not select device driver "
    '"nvidia" with capabilities: [[gpu]]\', install nvidia-container-toolkit on the host '
    "and restart Docker. Without a GPU, add '-f compose.yaml -f compose.cpu.yaml'"
)
NO_TOKEN = "Check the network and HF_ENDPOINT, or put a file with a token that may write into HF_TOKEN_PATH"
# A line of output: what was checked, the level, what was found, and what to do about it.
Finding = tuple[str, str, str, str]


def run(_args: argparse.Namespace) -> int:
    """Print every finding; 1 if any is BAD."""
    bad = 0
    for about, level, found, advice in _findings(os.environ):
        line = as_typed(f"{level:4}  {about}: {found}" + (f". {advice}" if advice else ""))
        width = terminal_columns() - 1 if sys.stdout.isatty() else len(line)
        wrap = textwrap.TextWrapper(width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
        print(wrap.fill(line), flush=True)
        bad += level == BAD
    print(f"{bad} to fix (marked BAD)" if bad else "everything is in order")
    return min(bad, 1)


def _findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    yield check_packages()
    try:
        environment, config = configure(environ)
    except UserError as error:
        yield from (("settings", BAD, problem, "See docs/configuration.md") for problem in error.problems)
        return
    dataset, target = ", ".join(environment.dataset) or "(those of the file)", environment.target or "nowhere"
    yield "settings", OK, f"CONFIG={environment.config} DATASET={dataset}, uploads to {target}", ""
    yield check_token(environment, environ)
    folder = environment.output_dir
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if place.is_dir() and os.access(place, os.R_OK | os.W_OK | os.X_OK):
        yield "output folder", OK, str(folder), ""
    else:
        found = f"user {os.geteuid()} may not write to {place} of user {place.stat().st_uid}, or it is no folder"
        yield "output folder", BAD, found, f"sudo chown -R $(id -u):$(id -g) {folder}; in a container leave out --user"
    yield from check_data(environment, config)
    yield from check_device(environment, config)


def no_gpu_advice(root: Path = Path("/")) -> str:
    """What to do where no GPU is found: SELinux and an engine with CDI have ways of their own."""
    advice = NO_GPU
    with contextlib.suppress(OSError):
        if "container_t" in (root / "proc/self/attr/current").read_text():
            advice += ". SELinux confines this container: --security-opt label=disable"
    if any((root / "etc/cdi").glob("*")):
        advice += ". An engine here that takes GPUs by CDI only: docker run --device nvidia.com/gpu=all"
    return advice


def check_packages(lock: Path = LOCK) -> Finding:
    """Compare what is installed with the lock next to this code; an installed package has none."""
    there = {name: version.partition("+")[0] for name, version in installed_packages().items()}
    lines = re.findall(r"^([a-z0-9][^\\\n]*)", lock.read_text(), re.MULTILINE) if lock.is_file() else []
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]
    wrong = [f"{one} ({there.get(one.name)})" for one in wanted if there.get(one.name, "0") not in one.specifier]
    if not wrong:
        return "packages", OK, f"{len(wanted)} as in the lock" if wanted else "no lock to compare them with", ""
    advice = "Only runs with the same packages are equal bit for bit: delete .venv and start scripts/local.sh again"
    return "packages", BAD, f"{len(wrong)} differ from the lock: {', '.join(wrong[:5])}", advice


def check_token(environment: Environment, environ: Mapping[str, str]) -> Finding:
    """Ask the Hub whose token this is, and whether it may write."""
    if environment.hf_repo is None:
        return "token", NOTE, "HF_REPO is not set: nothing is uploaded, no token is needed", ""
    token = None
    try:
        if (token := read_token(environ)) is None:
            return "token", BAD, "HF_REPO is set, but neither HF_TOKEN_PATH nor HF_TOKEN", NO_TOKEN
        bound_client(read_s=20.0, tries=2)  # which has no time limit of its own
        account = HfApi(endpoint=environment.hf_endpoint, token=token).whoami()
    except Exception as error:  # noqa: BLE001 - whatever the client raises becomes one line without the token
        found = str(error) if isinstance(error, UserError) else classify(error, token=token).line
        return "token", BAD, found, NO_TOKEN
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    level, advice = (BAD, NO_TOKEN) if role == "read" else (OK, "")
    return "token", level, f"belongs to {account.get('name', '?')}, role {role or 'unknown'}", advice


def check_data(environment: Environment, config: Config) -> Iterator[Finding]:
    """Whether the training data opens, counted as a run counts it. A drawn data set is not drawn for this."""
    from seqtrack.training.build import open_sources  # deferred: wrong packages may keep torch from loading

    logging.getLogger("seqtrack.data").setLevel(logging.ERROR)
    names = [one.upper() for one in config.DATA.TRAIN.DATASETS_NAME]
    undrawn = [one for name, one in DRAWN.items() if name in names and not (environment.data_dir / one.name).is_dir()]
    for drawn in undrawn:
        where = f"{environment.data_dir / drawn.name} ({drawn.megabytes} MB)"
        yield "data", NOTE, f"{drawn.name}: synthetic, drawn at first use into {where}", ""
    if undrawn:
        return
    try:
        for one in open_sources(config, environment.data_dir):
            frames = sum(sequence.num_frames for sequence in one.sequences)
            yield "data", OK, f"{one.name}: {len(one.sequences)} training sequences, {frames:,} frames", ""
    except UserError as error:
        advice = "`seqtrack data check` lists everything; `seqtrack data download` fetches classes of LaSOT"
        yield from (("data", BAD, problem, advice) for problem in error.problems[:5])


def check_device(environment: Environment, config: Config, *, limit_s: float = 120.0) -> Iterator[Finding]:
    """Versions, memory and disk by `plan`'s numbers, and a trial of what a run with these settings computes."""
    import torch  # deferred: as above

    from seqtrack.commands.plan import GIB, Plan, find_machine  # as above

    found = f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    yield "versions", OK, f"{found}, {shutil.disk_usage('/dev/shm').free / GIB:.1f} GiB free in /dev/shm", ""
    try:
        plan = Plan(config, machine := find_machine(environment))
    except UserError as error:
        yield from (("device", BAD, problem, no_gpu_advice()) for problem in error.problems)
        return
    missing = plan.device == "cpu" and environment.device == "auto"
    driver = _driver_version() if machine.gpu else ""
    found = (machine.gpu or f"CPU (DEVICE={environment.device})") + (f", driver {driver}" if driver else "")
    yield "device", NOTE if missing else OK, found, no_gpu_advice() * missing
    level, advice = (BAD, "The device emulates bf16: use TRAIN.AMP auto") if plan.stores_scores else (OK, "")
    yield "precision", level, f"TRAIN.AMP {config.TRAIN.AMP} is {plan.precision} here", advice
    yield from ((problem.code.removeprefix("plan."), BAD, problem, "") for problem in plan.problems)
    if not plan.problems:
        memory, disk = plan.memory_needed / GIB, plan.disk_needed / GIB
        yield "memory", OK, f"{memory:.1f} GiB of {machine.memory / GIB:.1f} GiB ({machine.memory_from}) needed", ""
        yield "disk", OK, f"{disk:.1f} GiB of {machine.disk / GIB:.1f} GiB needed", ""
    work = [plan.device, machine.processes, plan.precision, plan.encoder_tokens, limit_s]
    try:
        if launch([sys.executable, "-m", __name__, json.dumps(work)], machine.processes, Environment()) == 0:
            plural = "es" if machine.processes > 1 else ""
            yield "trial", OK, f"attention in {plan.precision}, a sum over {machine.processes} process{plural}", ""
    except (RunError, UserError) as error:
        found = f"no answer within {limit_s:.0f} s" if "SIGALRM" in str(error) else str(error)
        advice = "Without code for this GPU: CUDA=cu128 docker compose build (newer ones), DEVICE=cpu (older ones)"
        yield "trial", BAD, found, advice


def _driver_version() -> str:
    """Of NVIDIA's driver, by its own program; empty if that is not here or does not answer."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.partition("\n")[0].strip()


def _trial(name: str, processes: int, precision: str, tokens: int, limit_s: float) -> None:
    """One process of the trial: an attention with its gradient, and a sum over all processes."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # its signal ends this process
    end_with_parent(signal.SIGKILL)
    import torch  # deferred: as above

    from seqtrack.device import DTYPES  # as above
    from seqtrack.runtime.distributed import end_process, join  # as above

    ending = Ending(0)
    try:
        ranks = join(name)
        x = torch.randn(1, 2, tokens, 64, device=ranks.device, dtype=DTYPES[precision], requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()  # type: ignore[no-untyped-call]
        total = float(ranks.sum_in_place(torch.ones(1, device=ranks.device)))
        if x.grad is None or not bool(x.grad.isfinite().all()) or total != processes:
            raise RuntimeError(f"a gradient in {precision} is not finite, or {total:g} is not the sum of {processes}")
    except Exception as error:  # noqa: BLE001 - whatever fails becomes one line
        ending = Ending(1, [Problem(f"{type(error).__name__}: {str(error).strip()}".splitlines()[0], "doctor.trial")])
    leave_ending(ending)
    end_process(ending.code)


if __name__ == "__main__":
    _trial(*json.loads(sys.argv[1]))
