"""Items of whole runs as processes: interrupted and resumed, out of memory, several ranks, NCCL."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from gpu_checks.common import Check, Child, Context, completed, epoch_reached, started
from seqtrack.checkpoints.side_files import read_metrics
from seqtrack.errors import STOPPED_EXIT_CODE
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import model_spec
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS


def _in_second_epoch(output: Path) -> bool:
    """Whether a run has saved its first epoch, which happens in the background, and logs the second."""
    phase = output / "phase_1"
    return (phase / "checkpoints" / "SEQTRACK_ep0001.json").is_file() and epoch_reached(phase, 2)


def _demo(context: Context) -> None:
    """Draw the demo's data once."""
    if not (context.work / "data").is_dir():
        completed(context, context.environment(context.work / "none"), "seqtrack", "data", "prepare")


def _same(context: Context, check: Check, what: str, a: Path, b: Path) -> None:
    output = context.work / f"comparison-{what}"
    words = ("verify", str(a), str(b), "-o", str(output))
    ended = completed(context, context.environment(context.work), "seqtrack", *words)
    check.values[what] = ended.last_line
    check.that((ended.code, ended.last_line) == (0, "identical"), f"{what}: {ended.said[-300:]}")


def interrupted(context: Context, check: Check) -> str:
    """A run that is killed, and one that is stopped, each resumed, against one that nobody disturbed."""
    _demo(context)
    keys = {"TRAIN.AMP": "bf16"}
    whole, killed, stopped = (context.work / name for name in ("whole", "killed", "stopped"))
    envs = {output: context.environment(output, keys) for output in (whole, killed, stopped)}
    with ExitStack() as stack:
        runs = {}
        for output, env in envs.items():
            runs[output] = stack.enter_context(started(context, env, "seqtrack", "train"))
        disturbed = {killed: signal.SIGKILL, stopped: signal.SIGTERM}
        while disturbed:
            for output in [one for one in disturbed if _in_second_epoch(one) or not runs[one].process.is_alive()]:
                runs[output].signal(disturbed.pop(output))
            time.sleep(0.002)
        for output, expected in ((whole, 0), (killed, -9), (stopped, STOPPED_EXIT_CODE)):
            ended = runs[output].end()
            check.values[f"{output.name} exit code"] = ended.code
            check.that(ended.code == expected, f"{output.name}: {ended.code}, expected {expected}: {ended.last_line}")
    with ExitStack() as stack:
        runs = {one: stack.enter_context(started(context, envs[one], "seqtrack", "train")) for one in (killed, stopped)}
        for output, run in runs.items():
            resumed = run.end()
            check.that(resumed.code == 0, f"{output.name}, resumed: {resumed.code}: {resumed.last_line}")
            bitwise = "guarantee with that checkpoint: bitwise" in resumed.said
            check.that(bitwise, f"{output.name}: the log does not say bitwise")
            _same(context, check, output.name, whole / "phase_1", output / "phase_1")
    last = read_metrics(whole / "phase_1/logs/metrics.jsonl").records[-1].model_dump()
    check.values["last record"] = {name: value for name, value in last.items() if name not in WALL_CLOCK_FIELDS}
    return f"killed: {check.values['killed']}, stopped: {check.values['stopped']}"


def out_of_memory(context: Context, check: Check) -> str:
    """A run with so little memory that `model.to`, a forward pass, or the optimizer's step fails."""
    _demo(context)
    config = context.config()
    weights = 4 * cost_of(model_spec(config)).parameters
    total = torch.cuda.get_device_properties(0).total_memory if context.is_cuda else 1
    keys = {"MODEL.ENCODER.PRETRAIN_TYPE": "scratch", "TRAIN.NUM_WORKER": 1, "DATA.TRAIN.SAMPLE_PER_EPOCH": 16}
    # One sample's activations take less than the optimizer's two values per weight, so its step is the peak.
    stages = {"to": 0.5, "forward": 1.15, "step": 3.2}
    for stage, times_weights in stages.items():
        output = context.work / f"memory-{stage}"
        name = "demo" if context.small else "seqtrack_b256"
        env = context.environment(output, keys, CONFIG=name, BATCH_SIZE=1)
        fraction = min(1.0, times_weights * weights / total)
        ended = completed(context, env, "out_of_memory", stage, fraction, "train")
        files = [str(one.name) for one in (output / "phase_1" / "checkpoints").glob("*") if one.is_file()]
        check.values[stage] = {"code": ended.code, "last line": ended.last_line, "files": files}
        check.that(ended.code == 1, f"{stage}: exit code {ended.code}: {ended.last_line:.200}")
        check.that("Traceback" not in ended.said, f"{stage}: a traceback")
        check.that("out of" in ended.last_line and "memory" in ended.last_line, f"{stage}: said {ended.last_line:.200}")
        check.that(not files, f"{stage}: left {files}")
    return "; ".join(f"{stage}: exit {check.values[stage]['code']}" for stage in check.values)


def several_ranks(context: Context, check: Check) -> str:
    """Ranks that share the GPU through gloo, stopped and resumed, against the uninterrupted run."""
    _demo(context)
    keys = {"TRAIN.AMP": "bf16", "TRAIN.NUM_WORKER": 0}
    counts = context.pick((2, 3), (2,))
    whole = {count: context.work / f"whole-{count}" for count in counts}
    cut = {count: context.work / f"cut-{count}" for count in counts}
    with ExitStack() as stack:
        groups = {}
        for count in counts:
            groups[whole[count]] = stack.enter_context(_ranks(context, whole[count], keys, count))
            groups[cut[count]] = stack.enter_context(_ranks(context, cut[count], keys, count))
        running = set(cut.values())
        while running:
            for output in [one for one in running if _in_second_epoch(one) or not groups[one][0].process.is_alive()]:
                running.remove(output)
                groups[output][-1].signal(signal.SIGTERM)
            time.sleep(0.002)
        for output, group in groups.items():
            _ended(check, output, group, 0 if output in whole.values() else STOPPED_EXIT_CODE)
    with ExitStack() as stack:
        groups = {cut[count]: stack.enter_context(_ranks(context, cut[count], keys, count)) for count in counts}
        for output, group in groups.items():
            _ended(check, output, group, 0)
    for count in counts:
        _same(context, check, f"{count} ranks", whole[count] / "phase_1", cut[count] / "phase_1")
    keys |= {"TRAIN.SHARDS": 4, "MODEL.DECODER.DROPOUT": 0.1}
    shards = {count: context.work / f"shards-{count}" for count in (1, *counts)}
    with ExitStack() as stack:
        groups = {}
        for count, output in shards.items():
            groups[output] = stack.enter_context(_ranks(context, output, keys, count))
        for output, group in groups.items():
            _ended(check, output, group, 0)
    for count in counts:
        _same(context, check, shards[count].name, shards[1] / "phase_1", shards[count] / "phase_1")
    found = ", ".join(f"{count} ranks: {check.values[f'{count} ranks']}" for count in counts)
    return f"{found}; with shards: {', '.join(check.values[shards[count].name] for count in counts)} to 1 rank"


def _ended(check: Check, output: Path, group: list[Child], expected: int) -> None:
    """Wait for all ranks of a run."""
    ended = [child.end() for child in group]
    codes = [one.code for one in ended]
    check.that(set(codes) == {expected}, f"{output.name}: {codes}, expected {expected}: {ended[0].last_line}")


@contextmanager
def _ranks(context: Context, output: Path, keys: dict[str, object], count: int) -> Iterator[list[Child]]:
    """The ranks of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_RANK": "0"}
    meeting |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    env = {**context.environment(output, keys), **meeting}
    with ExitStack() as stack:
        yield [
            stack.enter_context(started(context, {**env, "RANK": str(rank)}, "rank", "train")) for rank in range(count)
        ]


def nccl_alone(context: Context, check: Check) -> str:
    """Every collective through NCCL in a group of one."""
    began = time.perf_counter()
    ended = completed(context, context.environment(context.work), "alone", context.device)
    seconds = time.perf_counter() - began
    check.values |= {"said": ended.said[-2000:], "seconds": seconds}
    check.that(ended.code == 0 and "done" in ended.said, f"exit code {ended.code}: {ended.said[-300:]}")
    return f"exit code {ended.code} after {seconds:.1f} s"
