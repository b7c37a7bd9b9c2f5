"""Plant faults of the kind that lose runs, one at a time, and report which ones the tests notice.

    python scripts/mutate.py [--only WORD] [--list]

Each fault is a replacement of source text in a scratch copy of the tree, followed by the few tests that should notice
it. They run without a fault first, for what fails then notices nothing. A fault that goes unnoticed, or whose text is
no longer in the source, makes the exit code 1. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("seqtrack", "tests", "pyproject.toml", "requirements.lock")
TIMEOUT_S = 600

STATE = "tests/training/test_state.py"
LOGS = "tests/training/test_steps_and_logs.py"
START = "tests/checkpoints/test_resume_point.py"
DAMAGE = "tests/checkpoints/test_damage.py"
DISK = "tests/checkpoints/test_full_disk.py"
CUT = "tests/faults/test_interrupted_runs.py"
SEVERAL = "tests/faults/test_several_processes.py"
DISTURBED = "tests/faults/test_disturbed_runs.py"
COMPARE = "tests/reports/test_compare_runs.py"
RANKS = "tests/training/test_distributed.py"
LOADER = "tests/data/test_loader.py"


class Fault(NamedTuple):
    """`old` becomes `new` in `file` of the package; `tests` are what pytest is given."""

    name: str
    file: str
    old: str
    new: str
    tests: str


# One line of text a field, as short as it can be and still are once in its file.
# fmt: off
FAULTS = [
    Fault("the scheduler is not saved", "training/state.py",
          'if item.name != "model":', 'if item.name not in ("model", "scheduler"):', STATE),
    Fault("the scheduler is saved and not put back", "training/optimizer.py",
          'self.step_count = int(state["step_count"])', "pass", STATE),
    Fault("the optimizer's moments are not put back", "training/optimizer.py",
          'in state.get("state", {}).items():', 'in list(state.get("state", {}).items())[:0]:', STATE),
    Fault("torch's generator is not put back", "training/state.py",
          'torch.set_rng_state(own["torch"])', "pass", STATE),
    Fault("generator states follow the weights to another device", "training/state.py",
          'torch.set_rng_state(own["torch"])', 'torch.set_rng_state(own["torch"].to("meta"))', STATE),
    Fault("Python's generator is not put back", "training/state.py",
          "random.setstate((python", "(lambda _: None)((python", STATE),
    Fault("NumPy's generator is not put back", "training/state.py",
          "np.random.set_state(  # noqa", "(lambda _: None)(  # noqa", STATE),
    Fault("generators start from the machine's entropy", "training/build.py",
          "rng.seed(config.TRAIN.SEED)", "pass", f"{CUT} -k two_uninterrupted_runs"),
    Fault("the meters are not put back", "training/state.py",
          '_expect_keys("meters", set(state), {item.name for item in fields(self)})', "return", STATE),
    Fault("the history is not put back", "training/state.py",
          'self.epochs = [dict(record) for record in state["epochs"]]', "pass", STATE),
    Fault("the epoch's label is off by one after a resume", "training/trainer.py",
          "state.epoch if state.sample else state.epoch + 1", "state.epoch if state.sample else max(state.epoch, 1)",
          f"{CUT} -k phase_2_ends"),
    Fault("samples are taken for batches", "training/trainer.py",
          "start_step=state.sample // self.config.TRAIN.BATCH_SIZE", "start_step=state.sample", STATE),
    Fault("the loader begins the epoch again after a resume", "training/trainer.py",
          "start_step=state.sample // self.config.TRAIN.BATCH_SIZE", "start_step=0", STATE),
    Fault("the last batch is shown as the epoch's value", "training/state.py",
          "return self.loss_sum / self.count", "return self.interval_loss_sum / max(1, self.interval_count)",
          f"{STATE} {LOGS}"),
    Fault("both phases write into one folder", "config/environment.py",
          'phase_name(phase or self.phase)', '"phase_1"', f"{CUT} -k phase_2_ends"),
    Fault("a run that broke ends with 0", "cli.py",
          "error.problem.line, file=sys.stderr)\n        return 1\n",
          "error.problem.line, file=sys.stderr)\n        return 0\n",
          f"{DISTURBED} -k finite"),
    Fault("a mistake of the user's ends with 0", "cli.py",
          "return USER_ERROR_EXIT_CODE", "return 0", f"{DISTURBED} -k runs_record"),
    Fault("a checkpoint is written straight onto its name", "checkpoints/safetensors_io.py",
          'temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")', "temporary = path",
          f"{CUT} -k half_written"),
    Fault("a small file is written straight onto its name", "checkpoints/safetensors_io.py",
          "    with new_file(path) as file:\n        write_whole(file, data)\n", "    path.write_bytes(data)\n",
          f"{DISK} -k small_file"),
    Fault("half a file is left when the disk is full", "checkpoints/safetensors_io.py",
          "        temporary.unlink(missing_ok=True)\n", "        pass\n", DISK),
    Fault("the rank goes into the sample", "data/loader.py",
          "self.dataset.sample(epoch, index)\n", "self.dataset.sample(epoch, index + 100 * self.rank)\n",
          f"{SEVERAL} -k same_samples"),
    Fault("ranks weigh their own samples instead of the global batch's", "training/train_step.py",
          "train.CE_WEIGHT / global_count", "train.CE_WEIGHT / max(1, size)", f"{SEVERAL} -k same_samples"),
    Fault("an empty share counts its stand-in", "training/train_step.py",
          "< batch.count)", "< max(1, batch.count))", f"{SEVERAL} -k same_samples"),
    Fault("the parts of a batch are not weighed alike", "training/train_step.py",
          "scale(weighted.sum() * scale)", "scale(weighted.sum() * scale * parts)", f"{SEVERAL} -k four_parts"),
    Fault("dropout draws from wherever the generator is", "training/train_step.py",
          "torch.manual_seed(step_seed(train.SEED, state.step, self.distributed.rank))", "pass", LOGS),
    Fault("a loss that is not finite is trained on", "training/train_step.py",
          "if not math.isfinite(loss) or not (skipped or math.isfinite(norm)):", "if False:", LOGS),
    Fault("the gradient is not clipped", "training/train_step.py",
          "train.GRAD_CLIP_NORM or math.inf)", "math.inf)", LOGS),
    Fault("a start after a death calls the dead processes", "runtime/distributed.py",
          'f"start {start}"', '"start"', RANKS),
    Fault("gradients are not summed over ranks", "training/train_step.py",
          "self.gradients.sum_over_ranks()", "pass", f"{SEVERAL} -k same_samples"),
    Fault("a rank's own error gives way to that of one that lost it", "runtime/launcher.py",
          "if not ending.lost_peer for", "for", "tests/training/test_launcher.py"),
    Fault("a stop is not voted on", "training/trainer.py",
          "return self.stop.is_set, due and self.distributed.is_main", "return False, due and self.distributed.is_main",
          f"{SEVERAL} -k stop_asked"),
    Fault("a stopped run ends with 0", "errors.py",
          "STOPPED_EXIT_CODE = 75", "STOPPED_EXIT_CODE = 0", f"{CUT} -k stopped_run_saves"),
    Fault("a failed write goes unnoticed", "training/checkpointer.py",
          "            self._failure = error\n", "            pass\n", DISK),
    Fault("the state is written while training changes it", "training/checkpointer.py",
          "return {name: self._buffers[name] for name in tensors}", "return dict(tensors)", LOGS),
    Fault("records after the resumption stay in the log", "runtime/metrics_log.py",
          "elif record.step <= resume_step:", "else:", LOGS),
    Fault("a file's digest is not checked", "checkpoints/store.py",
          "if contents.sha256 != manifest.sha256:", "if False:", DAMAGE),
    Fault("what nobody wants of a file is not digested", "checkpoints/safetensors_io.py",
          "                    hasher.add(piece, name)",
          "                    hasher.add(piece, name) if name in wanted else None", f"{DAMAGE} -k larger_than"),
    Fault("what was read for one checkpoint is loaded for another", "training/resume.py",
          "kept is not None and kept[0] == manifest else", "kept is not None else", f"{DAMAGE} -k not_the_last"),
    Fault("a checkpoint is read again after it was verified", "training/resume.py",
          "return kept[1:] if kept is not None and kept[0] == manifest else load_checkpoint(manifest)",
          "return load_checkpoint(manifest)",
          f"{DAMAGE} -k whatever_the_disk"),
    Fault("the state lives in the memory that saves are copied to", "training/optimizer.py",
          "copy=True) for key", "copy=False) for key", f"{LOGS} -k shares_no_memory"),
    Fault("a worker that died idle is nobody's concern", "data/loader.py",
          "        except OSError:\n            self._died(worker)\n        worker.asked += 1",
          "        finally:\n            worker.asked += 1",
          f"{LOADER} -k nothing_to_do"),
    Fault("a manifest may tell another step than its file", "checkpoints/store.py",
          "if getattr(manifest, name) != found:", "if False:", DAMAGE),
    Fault("the oldest checkpoint is taken for the newest", "checkpoints/store.py",
          'key=_age, reverse=True):', 'key=_age):', START),
    Fault("what is superseded is overwritten", "checkpoints/resume_point.py",
          '        _move_aside(checkpoints, start, metrics=metrics_path(folder))\n', "        pass\n", START),
    Fault("a finished run trains again", "checkpoints/resume_point.py",
          'if run.state == "complete" and (_is_end', "if False and (_is_end", START),
    Fault("two runs may share a folder", "checkpoints/resume_point.py",
          "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", START),
    Fault("a checkpoint goes that is nowhere else", "checkpoints/retention.py",
          "if item is not best and is_safe(item)", "if item is not best", START),
    Fault("another experiment's checkpoint is resumed", "training/resume.py",
          "if manifest.config_digest != config_digest(config):", "if False:", f"{DISTURBED} -k another_model"),
    Fault("checkpoints name no parent", "training/checkpointer.py",
          "            self.parent_sha256 = manifest.sha256\n", "            pass\n", f"{COMPARE} -k whole_chain"),
    Fault("a foreign link passes", "reports/compare.py",
          "elif manifest.parent_sha256 != digests[epoch - 1]:", "elif False:", f"{COMPARE} -k link"),
    Fault("log numbers are not compared", "reports/compare.py",
          'differences.append("log numbers")', "pass", f"{COMPARE} -k number_of_the_log"),
    Fault("a run that ended earlier passes for the same", "reports/compare.py",
          "    if ends[0] == ends[1]:\n", "    if True:\n", f"{COMPARE} -k ended_earlier"),
    Fault("warnings before the start are not in the log file", "runtime/metrics_log.py",
          "        file.handle(record)\n", "        pass\n", f"{DISTURBED} -k repeating_samples"),
    Fault("a log that cannot be written is skipped", "runtime/metrics_log.py",
          "        with name_in_errors(Path(self.baseFilename)):\n            raise\n", "        pass\n", LOGS),
]
# fmt: on
# Planted to know them; why no test can notice is said here.
EXPLAINED: dict[str, str] = {}


def _copy(target: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)


def _run_tests(tree: Path, tests: str, data: Path) -> tuple[bool, str]:
    """Whether the tests failed, and the name of the first that did."""
    words, _, chosen = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", *words.split()]
    command += ["-k", chosen] if chosen else []
    environ = {**os.environ, "TEST_DEMO_DATA": str(data), "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True, "no end within the time allowed"
    first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return done.returncode == 1, first.partition(" - ")[0].split("::", 1)[-1]


def _fails_without_a_fault(chosen: list[Fault], tree: Path, data: Path) -> str:
    """The first of the chosen faults' tests that fails in the tree as it is, or nothing."""
    wanted: dict[str, set[str]] = {}
    for fault in chosen:
        words, _, some = fault.tests.partition(" -k ")
        for file in words.split():
            wanted.setdefault(file, set()).add(some)
    for file, words_of_file in wanted.items():
        tests = file if "" in words_of_file else f"{file} -k {' or '.join(sorted(words_of_file))}"
        failed, first = _run_tests(tree, tests, data)
        if failed:
            return f"{file}: {first}"
    return ""


def _try(fault: Fault, tree: Path, data: Path) -> str:
    path = tree / "seqtrack" / fault.file
    good = path.read_text()
    if good.count(fault.old) != 1:
        return f"cannot be planted: its text is {good.count(fault.old)} times in {fault.file}"
    began = time.monotonic()
    path.write_text(good.replace(fault.old, fault.new))
    noticed, by = _run_tests(tree, fault.tests, data)
    path.write_text(good)
    return f"{f'noticed by {by}' if noticed else 'NOT NOTICED'} ({time.monotonic() - began:.0f} s)"


def main() -> int:
    """Plant the chosen faults; 1 if one goes unnoticed without an explanation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", help="plant only faults whose name holds this")
    parser.add_argument("--list", action="store_true", help="name the faults and plant none")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if args.only in fault.name]
    if args.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree, data = Path(folder, "tree"), Path(folder, "data")
        tree.mkdir()
        _copy(tree)
        if failing := _fails_without_a_fault(chosen, tree, data):
            print(f"{failing} fails without any fault: fix that first")
            return 1
        for fault in chosen:
            outcomes[fault.name] = _try(fault, tree, data)
            print(f"{fault.name}: {outcomes[fault.name]}", flush=True)
    missed = [name for name, outcome in outcomes.items() if not outcome.startswith("noticed")]
    unexplained = [name for name in missed if name not in EXPLAINED]
    print(json.dumps({"planted": len(outcomes), "noticed": len(outcomes) - len(missed), "unexplained": unexplained}))
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
