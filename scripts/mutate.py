"""Inject faults of the kind that lose runs, one at a time, and report which ones the tests notice.

    python scripts/mutate.py [--only TEXT]

Each fault replaces one expression or statement of one function in a scratch copy of the tree; then the few tests that
should notice it run. They run without a fault first, because a test that fails anyway notices nothing. A fault that no
test notices, or whose place is no longer in the source, makes the exit code 1. The last line is JSON.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("seqtrack", "tests", "pyproject.toml", "requirements.lock")
TIMEOUT_S = 600

STATE = "tests/training/test_state.py"
LOGS = "tests/training/test_steps_and_logs.py"
LAUNCH = "tests/training/test_launch.py"
START = "tests/checkpoints/test_resume_point.py"
DAMAGE = "tests/checkpoints/test_damage.py"
DISK = "tests/checkpoints/test_full_disk.py"
INTERRUPTED = "tests/faults/test_interrupted_runs.py"
SEVERAL = "tests/faults/test_several_processes.py"
SHARDED = "tests/faults/test_sharded_runs.py"
DISTURBED = "tests/faults/test_disturbed_runs.py"
BAD = "tests/faults/test_bad_input.py"
COMPARE = "tests/reports/test_compare_runs.py"


class Fault(NamedTuple):
    """In the function `place`, `old` becomes `new`; pytest is given `tests`.

    `place` is a qualified name (`Class.method`), with `module:` in front if it exists more than once in the package.
    `old` must occur exactly once in it. It is compared as syntax, so quotes, line breaks and comments do not matter;
    `...` in it matches any expression.
    """

    tests: str
    name: str
    place: str
    old: str
    new: str = "pass"


# fmt: off
FAULTS = [
    # --- what a checkpoint holds and puts back
    Fault(STATE, "the scheduler is not saved", "TrainState.capture", "item.name != 'model'",
          "item.name not in ('model', 'scheduler')"),
    Fault(STATE, "the scheduler is saved and not restored", "Schedule.load_state_dict", "self.step_count = ..."),
    Fault(STATE, "the optimizer's moments are not restored", "NamedOptimizer.load_state_dict",
          "state.get('state', {}).items()", "()"),
    Fault(STATE, "torch's generator is not restored", "RandomStates.load_state_dict", "torch.set_rng_state(...)"),
    Fault(STATE, "generator states follow the weights to another device", "RandomStates.load_state_dict",
          "own['torch']", "own['torch'].to('meta')"),
    Fault(STATE, "Python's generator is not restored", "RandomStates.load_state_dict", "random.setstate(...)"),
    Fault(STATE, "NumPy's generator is not restored", "RandomStates.load_state_dict", "np.random.set_state(...)"),
    Fault(STATE, "the meters are not restored", "Meters.load_state_dict", "_expect_keys(..., ..., ...)", "return"),
    Fault(STATE, "the history is not restored", "TrainState._restore_component", "self.history = ..."),
    Fault(f"{LOGS} -k shares_no_memory", "the restored state shares memory with the buffers of saves",
          "NamedOptimizer.load_state_dict", "tensor.to(device=parameter.device, copy=True)",
          "tensor.to(parameter.device)"),
    Fault(f"{COMPARE} -k by_itself", "checkpoints name no parent", "Checkpointer._write",
          "self.parent_sha256 = manifest.sha256"),
    # --- where a run continues
    Fault(f"{INTERRUPTED} -k two_uninterrupted_runs", "generators start from the machine's entropy", "build_state",
          "rng.seed(...)"),
    Fault(f"{INTERRUPTED} -k phase_2_ends", "the epoch number is off by one after a resume", "Trainer.run",
          "state.epoch + 1", "max(state.epoch, 1)"),
    Fault(STATE, "samples are counted as batches", "Trainer._train_epoch",
          "state.sample // self.config.TRAIN.BATCH_SIZE", "state.sample"),
    Fault(f"{INTERRUPTED} -k inside_an_epoch", "the loader restarts the epoch after a resume", "Trainer._train_epoch",
          "state.sample // self.config.TRAIN.BATCH_SIZE", "0"),
    Fault(f"{INTERRUPTED} -k phase_2_ends", "both phases write into one folder", "Environment.phase_folder",
          "phase or self.phase", "1"),
    Fault(START, "the oldest checkpoint counts as the newest", "latest_valid", "True", "False"),
    Fault(START, "superseded files are overwritten", "hold_run_dir", "_move_aside(..., ...)"),
    Fault(START, "a finished run trains again", "find_resume_point",
          "run.state == 'complete' and (... if own else ...)", "False"),
    Fault(f"{INTERRUPTED} -k worker_hangs", "two runs may share a folder", "hold_run_dir", "fcntl.flock(..., ...)"),
    Fault(f"{BAD} -k another", "another experiment's checkpoint is resumed", "_check_experiment",
          "_refuse(manifest.path, problems)"),
    # --- the numbers
    Fault(f"{STATE} {LOGS}", "the last batch is shown as the epoch's value", "Meters.loss",
          "self.loss_sum / self.count", "self.interval_loss_sum / max(1, self.interval_count)"),
    Fault(LOGS, "dropout draws from the generator's current state", "TrainStep._seed", "torch.manual_seed(...)"),
    Fault(f"{LAUNCH} -k not_finite", "a loss that is not finite is trained on", "TrainStep.read",
          "not math.isfinite(loss) or ...", "False"),
    Fault(LOGS, "the gradient is not clipped", "TrainStep.__call__", "train.GRAD_CLIP_NORM or math.inf", "math.inf"),
    Fault(f"{SEVERAL} -k four_parts", "accumulated parts of a batch have the wrong weight", "TrainStep._backward_part",
          "weighted.sum() * scale", "weighted.sum() * scale * self.config.TRAIN.ACCUMULATION_STEPS"),
    # --- several processes
    Fault(f"{SEVERAL} -m long -k same_samples", "samples depend on the rank", "BatchLoader.fill",
          "self.dataset.sample(epoch, index)", "self.dataset.sample(epoch, index + 100 * self._shards.start)"),
    Fault(f"{SEVERAL} -m long -k same_samples", "ranks weigh by their own batch instead of the global one",
          "TrainStep._backward", "... / global_count", "self.config.TRAIN.CE_WEIGHT / max(1, len(batch.real))"),
    Fault(f"{SEVERAL} -m long -k same_samples", "the placeholder of an empty shard counts as a sample",
          "TrainStep._send",
          "... < batch.count", "torch.arange(batch.search.shape[0]) < max(1, batch.count)"),
    Fault(f"{SEVERAL} -m long -k same_samples", "gradients are not summed over ranks", "TrainStep.__call__",
          "self.gradients.sum_over_ranks()"),
    Fault(f"{SHARDED} -k any_number", "an all-reduce sums the gradients of shards", "ShardGradients.sum_over_ranks",
          "self._exchange()", "[dist.all_reduce(one) for node in self._nodes.values() for one in node]"),
    Fault(f"{SHARDED} -k any_number", "dropout of shards is seeded by rank", "TrainStep._backward", "self._seed(shard)",
          "self._seed(self.distributed.rank)"),
    Fault(f"{SHARDED} -k any_number", "the saved generator tells which shard was last", "TrainStep._backward",
          "self._seed(self.shards)"),
    Fault(f"{SEVERAL} -k stop_asked", "only the signalled rank stops", "Trainer._votes", "self.stop.is_set", "False"),
    Fault("tests/runtime/test_distributed.py", "a restart meets the processes of the failed start", "rendezvous_store",
          "PrefixStore(..., store)", "PrefixStore('start', store)"),
    Fault("tests/runtime/test_launcher.py", "a lost peer hides the error that caused it", "launch",
          "one.code != PEER_LOST", "True"),
    Fault("tests/data/test_loader.py -k killed_worker", "a worker that died is ignored", "BatchLoader.batches",
          "raise RunError(..., code=...) from error", "return"),
    # --- exit codes
    Fault(f"{DISTURBED} -k dead_loader", "a failed run exits with 0", "cli:_run", "return 1", "return 0"),
    Fault(f"{BAD} -k mistake", "a user error exits with 0", "cli:_refuse", "USER_ERROR_EXIT_CODE", "0"),
    Fault(f"{INTERRUPTED} -k stopped_run_saves", "a stopped run exits with 0", "STOPPED_EXIT_CODE", "75", "0"),
    # --- files
    Fault(f"{INTERRUPTED} -k half_written", "a checkpoint is written directly to its final name", "new_file",
          "temporary = ...", "temporary = path"),
    Fault(f"{DISK} -k small_file", "a small file is written directly to its final name", "write_atomic",
          "with new_file(path) as file:\n    file.write(data)", "path.write_bytes(data)"),
    Fault(DISK, "half a file remains when the disk is full", "new_file", "temporary.unlink(missing_ok=True)"),
    Fault(DISK, "a failed write goes unnoticed", "Checkpointer.wait", "writing.result()", "writing.exception()"),
    Fault(LOGS, "the state is written while training changes it", "Checkpointer._copy",
          "{name: self._buffers[name] for name in tensors}", "dict(tensors)"),
    Fault(DAMAGE, "a file's digest is not checked", "verify_checkpoint", "contents.sha256", "manifest.sha256"),
    Fault(f"{DAMAGE} -k not_loaded", "tensors that are not loaded are not hashed", "checkpoints.safetensors_io:_digest",
          "running = pool.submit(whole.update, tensor.data)",
          "running = pool.submit(whole.update, tensor.data if keep(name) else b'')"),
    Fault(DAMAGE, "a manifest may name another step than its file", "verify_checkpoint",
          "getattr(manifest, name) != ...", "name == 'sha256' and getattr(manifest, name) != found"),
    Fault(START, "a checkpoint is deleted that exists nowhere else", "checkpoints_to_delete",
          "item is not best and is_safe(item)", "item is not best"),
    # --- logs and comparison
    Fault(STATE, "records after the resume point stay in the log", "RunLog._keep_records",
          "record.step <= self._resume_step", "True"),
    Fault(f"{COMPARE} -k link", "a foreign link in the hash chain is accepted", "_chain",
          "(before := manifests.get(epoch - 1)) is not None", "False"),
    Fault(f"{COMPARE} -k number_of_the_log", "log numbers are not compared", "_compare_epoch",
          "step is not None", "False"),
    Fault("tests/faults/test_longer_runs.py -k planned_longer", "a run that ended earlier counts as identical",
          "compare_runs", "max(ours) != max(theirs)", "False"),
    Fault("tests/runtime/test_run_log.py", "warnings before the start are not in the log file", "run_logging",
          "lines.flush()", "lines.buffer.clear()"),
    Fault("tests/runtime/test_run_log.py", "a log that cannot be written is ignored",
          "_FileHandler.handleError", "raise"),
]
# fmt: on


def defined(tree: Path, place: str) -> list[tuple[Path, ast.AST]]:
    """The functions, classes and constants of the package with this qualified name."""
    module, _, qualified = place.rpartition(":")
    found = []
    for path in sorted((tree / "seqtrack").rglob(f"{module.replace('.', '/') or '*'}.py")):
        text, names = path.read_text(), qualified.split(".")
        scopes: list[ast.AST] = [ast.parse(text)] if names[-1] in text else []
        for name in names:
            inside = [node for scope in scopes for node in getattr(scope, "body", ())]
            scopes = [node for node in inside if name in (getattr(node, "name", ""), _constant(node))]
        found += [(path, node) for node in scopes]
    return found


def _constant(node: ast.AST) -> str:
    return ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""


def inject(fault: Fault, tree: Path) -> tuple[Path, str]:
    """The file of a fault in a copy of the repository, and its source with the fault in it.

    Raises:
        LookupError: there is not exactly one such function, or not exactly one `old` in it.
    """
    found = defined(tree, fault.place)
    if len(found) != 1:
        raise LookupError(f"{fault.place} is defined {len(found)} times: {[str(path) for path, _ in found]}")
    path, scope = found[0]
    old = ast.parse(fault.old).body[0]
    # Replaced by a statement, `old` must be a whole statement; otherwise it may be part of a larger expression.
    is_expression = isinstance(old, ast.Expr) and fault.new not in ("pass", "return", "raise")
    pattern = old.value if isinstance(old, ast.Expr) and is_expression else old
    places = [node for node in ast.walk(scope) if isinstance(node, ast.stmt | ast.expr) and _matches(pattern, node)]
    if len(places) != 1:
        raise LookupError(f"{fault.place} in {path}: {fault.old!r} occurs {len(places)} times")
    place = places[0]
    lines = path.read_bytes().splitlines(keepends=True)  # columns count bytes
    start, end = (place.lineno - 1, place.col_offset), ((place.end_lineno or 0) - 1, place.end_col_offset)
    before = b"".join(lines[: start[0]]) + lines[start[0]][: start[1]]
    after = lines[end[0]][end[1] :] + b"".join(lines[end[0] + 1 :])
    return path, (before + (f"({fault.new})" if is_expression else fault.new).encode() + after).decode()


def _matches(pattern: object, node: object) -> bool:
    if (isinstance(pattern, ast.Constant) and pattern.value is ...) or isinstance(pattern, ast.expr_context):
        return True
    if isinstance(pattern, list) and isinstance(node, list):
        return len(pattern) == len(node) and all(map(_matches, pattern, node))
    if isinstance(pattern, ast.AST):
        fields = [field for field in pattern._fields if field not in ("kind", "type_comment")]
        return type(pattern) is type(node) and all(_matches(getattr(pattern, f), getattr(node, f)) for f in fields)
    return type(pattern) is type(node) and pattern == node


def run_tests(tree: Path, tests: str) -> tuple[int, str]:
    """The exit code of pytest (1: a test failed, or none ended in time), and the first test that failed."""
    files, _, chosen = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", *files.split()]
    command += ["-k", chosen] if chosen else []
    environ = {**os.environ, "TEST_DEMO_DATA": f"{tree}-data", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return 1, f"the limit of {TIMEOUT_S} s"
    first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return done.returncode, first.partition(" - ")[0].split("::", 1)[-1] or f"pytest exit code {done.returncode}"


def main() -> int:
    """Inject the chosen faults; 1 if one is not noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose name contains this")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if args.only in fault.name]
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        tree.mkdir()
        for name in COPIED:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tree / name)
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            code, first = run_tests(tree, tests)
            if code != 0:
                print(f"{tests}: fix this first, it fails without any fault: {first}")
                return 1
        for fault in chosen:
            try:
                path, faulty = inject(fault, tree)
                good = path.read_text()
                path.write_text(faulty)
                code, first = run_tests(tree, fault.tests)
                path.write_text(good)
                outcomes[fault.name] = f"noticed by {first}" if code == 1 else f"NOT NOTICED ({first})"
            except LookupError as error:
                outcomes[fault.name] = f"NOT INJECTED: {error}"
            print(f"{fault.name}: {outcomes[fault.name]}", flush=True)
    missed = [name for name, outcome in outcomes.items() if not outcome.startswith("noticed")]
    print(json.dumps({"injected": len(outcomes), "noticed": len(outcomes) - len(missed), "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
