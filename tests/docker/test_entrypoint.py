"""The entrypoint as a process: what it refuses, what it forwards, and how it runs an uploader alongside a trainer.

Trainer and uploader are scripted substitutes, since neither is under test here; the entrypoint, the signals, the
processes and the validation of variables are real. test_containers.py runs everything for real.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uploads.harness import checkpoint

from docker.containers import ROOT, command
from seqtrack.config.environment import configure

SUBSTITUTE = """
import os, pathlib, signal, sys, time
job, log = sys.argv[1], pathlib.Path(os.environ["SUBSTITUTE_LOG"])
def note(text):
    with log.open("a") as file:
        file.write(text + "\\n")
def stop(number, frame):
    note(f"{job} got {signal.Signals(number).name}")
    time.sleep(float(os.environ.get(f"{job}_slow_s".upper(), "0")))
    note(f"{job} stopped")
    sys.exit(75 if job == "train" else 3)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    signal.signal(signal.SIGHUP, stop)
note(" ".join(["start", *sys.argv[1:]]))
if "SHOWN_VARIABLE" in os.environ:
    note(os.environ.get(os.environ["SHOWN_VARIABLE"], "unset"))
steps = os.environ.get(f"{job}_does".upper(), "0").split()   # "SECONDS CODE", of each start in turn
starts = log.read_text().splitlines().count(f"start {job}")
seconds, code = steps[min(starts - 1, len(steps) - 1)].partition(":")[::2]
time.sleep(float(seconds))
note(f"{job} ended {code or 0}")
sys.exit(int(code or 0))
"""


class Started(subprocess.Popen[str]):
    """A running entrypoint with the log of its children."""

    def __init__(self, folder: Path, log: Path, words: tuple[str, ...], variables: dict[str, str]) -> None:
        self.log = log
        kept = {name: os.environ[name] for name in {"PATH", "LANG", "SSL_CERT_FILE", "TMPDIR"} & set(os.environ)}
        own = {"PYTHONPATH": str(folder / "stand-in"), "SUBSTITUTE_LOG": str(log), "HOME": str(folder)}
        super().__init__(
            [sys.executable, str(ROOT / "docker/entrypoint"), "--root", str(folder), *words],
            env={**kept, **own, **variables}, cwd=folder, start_new_session=True, text=True,
            stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def notes(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, note: str) -> None:
        end = time.monotonic() + 30
        while note not in self.notes():
            assert time.monotonic() < end, f"{note!r} never came: {self.notes()}"
            time.sleep(0.02)

    def finish(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, stderr = self.communicate(timeout=60)
        return self.returncode, stderr


StartEntrypoint = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartEntrypoint]:
    """Start `docker/entrypoint ARGUMENTS...` with the substitutes and some variables."""
    package = tmp_path / "stand-in" / "seqtrack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'__path__.append({str(ROOT / "seqtrack")!r})\n__version__ = "0"\n')
    (package / "__main__.py").write_text(SUBSTITUTE)
    running: list[Started] = []

    def begin(*words: str, **variables: str) -> Started:
        running.append(Started(tmp_path, tmp_path / f"log-{len(running)}", words, variables))
        return running[-1]

    yield begin
    for one in running:
        one.kill()
        one.wait()


UPLOADING = {"HF_REPO": "me/tracker", "TRAIN_DOES": "60", "UPLOAD_DOES": "60"}
OPTION = {"JOB": "--no-sidecar train-phase2", "SHOWN_VARIABLE": "EPOCHS", "TRAIN_DOES": "0"}


@pytest.mark.parametrize(
    ("words", "variables", "code", "notes", "incomplete"),
    [
        (["train"], {"TRAIN_DOES": "0:75"}, 75, ["start train", "train ended 75"], False),
        (["--no-sidecar", "train"], UPLOADING | {"TRAIN_DOES": "0"}, 0, ["start train", "train ended 0"], False),
        (["train"], UPLOADING | {"TRAIN_DOES": "1", "UPLOAD_DOES": "3"}, 0, ["train ended 0", "upload ended 0"], False),
        (["train"], UPLOADING | {"TRAIN_DOES": "0.5", "UPLOAD_DOES": "0:1"}, 0, [], True),
        (["train"], UPLOADING | {"TRAIN_DOES": "0", "UPLOAD_DRAIN_S": "1"}, 0, ["upload stopped"], True),
        (["train"], UPLOADING | {"TRAIN_DOES": "0.5:2"}, 2, ["train ended 2"], False),
        (["train-phase2"], {"PHASE": "1", "SHOWN_VARIABLE": "PHASE"}, 0, ["start train", "2", "train ended 0"], False),
        (["sh", "-c", "exit 7"], {}, 7, [], False),
        (["--checkpoint", "last"], {"JOB": "evaluate"}, 0, ["evaluate ended 0"], False),
        (["--epochs", "5"], UPLOADING | OPTION, 0, ["start train", "5", "train ended 0"], False),
        (["TRAIN.EPOCH=5"], {**OPTION, "SHOWN_VARIABLE": "OVERRIDES"}, 0, ["TRAIN.EPOCH 5", "train ended 0"], False),
    ],
    ids=[
        "trainer alone", "no sidecar", "uploader is waited for", "failing uploader", "drain time", "refused settings",
        "job names the phase", "any other program", "options alone", "options of a job of two words", "a key alone",
    ],
)  # fmt: skip
def test_what_runs_and_how_it_ends(
    start: StartEntrypoint, words: list[str], variables: dict[str, str], code: int, notes: list[str], incomplete: bool
) -> None:
    run = start(*words, **variables)
    ended, stderr = run.finish()
    assert ended == code, stderr
    assert run.notes()[len(run.notes()) - len(notes) :] == notes
    assert ("upload --once" in stderr) == incomplete, "names the command that uploads the rest"
    assert "start upload --once" not in run.notes()


def test_after_a_crash_the_output_is_uploaded_and_the_trainers_exit_code_returned(start: StartEntrypoint) -> None:
    run = start("train", **UPLOADING | {"TRAIN_DOES": "0.5:1"})
    run.wait_for("start upload --once")
    run.send_signal(signal.SIGTERM)
    assert run.finish()[0] == 1


def begin(start: StartEntrypoint, **variables: str) -> Started:
    run = start("train", **UPLOADING | variables)
    run.wait_for("start upload")
    run.wait_for("start train")
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_reaches_the_trainer_first_and_the_uploader_after_the_save(
    start: StartEntrypoint, number: signal.Signals
) -> None:
    run = begin(start, TRAIN_SLOW_S="0.5")
    # A terminal sends it to every process of the group.
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    assert run.finish()[0] == 75
    assert run.notes()[2:] == [f"train got {number.name}", "train stopped", "upload got SIGTERM", "upload stopped"]


def test_a_stop_before_anything_starts_ends_without_a_traceback(start: StartEntrypoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run = start("train", RESUME_EPOCH="latest", HF_REPO="me/x", HF_TOKEN="hf_x", HF_ENDPOINT=address)
        silent.accept()
        os.killpg(run.pid, signal.SIGINT)
        code, stderr = run.finish()
    assert (code, run.notes(), "Traceback" in stderr) == (75, [], False), stderr


def test_under_nohup_closing_the_terminal_stops_neither(start: StartEntrypoint) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = begin(start, TRAIN_DOES="2", UPLOAD_DOES="3")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    run.send_signal(signal.SIGHUP)
    assert run.finish()[0] == 0
    assert run.notes()[2:] == ["train ended 0", "upload ended 0"]


def test_a_silent_trainer_is_unhealthy_and_stopped_when_the_entrypoint_is_killed(
    start: StartEntrypoint, tmp_path: Path
) -> None:
    run, log = begin(start), tmp_path / "phase_1" / "logs" / "log"
    log.parent.mkdir(parents=True)
    for text, silent in (("new", False), ("old", True)):
        log.write_text(text)
        os.utime(log, (0, 0) if silent else None)
        answer = command([ROOT / "docker/healthcheck"], env={**os.environ, "OUTPUT_DIR": str(tmp_path)})
        assert (str(tmp_path) in answer.stdout) == silent and (answer.returncode or not silent)
    run.kill()
    run.wait_for("train stopped")


@pytest.mark.parametrize(
    ("limit", "is_valid"),
    [
        ("", True),
        (" ", True),
        ("60", True),
        (" 60.5", True),
        ("30m", False),
        ("nan", False),
        ("inf", False),
        ("0", False),
        ("-1", False),
    ],
)
def test_a_malformed_limit_is_unhealthy_and_one_line(limit: str, is_valid: bool, tmp_path: Path) -> None:
    variables = {"PATH": os.environ["PATH"], "OUTPUT_DIR": str(tmp_path), "HEALTH_STALE_S": limit}
    answer = command([ROOT / "docker/healthcheck"], env=variables)
    assert ("HEALTH_STALE_S" in answer.stdout, answer.stderr) == (not is_valid, "")
    if not is_valid:
        assert (answer.returncode, len(answer.stdout.splitlines())) == (1, 1)


def test_invalid_variables_and_an_unknown_job_are_reported_before_anything_starts(start: StartEntrypoint) -> None:
    run = start("train", PHASE="3", EPOCHS="many", HF_REPO="no-owner")
    code, stderr = run.finish()
    assert (code, run.notes()) == (2, [])
    assert all(f"]: {name}" in stderr for name in ("PHASE", "EPOCHS", "HF_REPO"))
    code, stderr = start("trian").finish()
    assert code == 2 and "'trian'" in stderr and "train-phase1" in stderr


def test_options_of_training_are_seen_by_the_uploader_too(start: StartEntrypoint) -> None:
    run = start("train-phase1", "--hf-repo", "me/tracker", "TRAIN.LR=2e-4", SHOWN_VARIABLE="OVERRIDES")
    assert run.finish()[0] == 0
    assert {"start train", "start upload"} <= set(run.notes()) and run.notes().count("TRAIN.LR 2e-4") >= 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop privileges")
@pytest.mark.parametrize(("owner", "becomes"), [((1234, 0), 1234), ((1234, 77), 77), ((0, 77), 0)])
def test_root_privileges_are_dropped_for_the_output_folders_owner(
    owner: tuple[int, int], becomes: int, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", *owner)
    folders = {"PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(tmp_path / "out"), "DATA_DIR": str(tmp_path)}
    # A system program: this interpreter may be in a place that only root can read.
    code = "import os, runpy, sys; runpy.run_path(sys.argv[1])['setup_user']('cat')"
    code += "; os.execv('/bin/cat', ['cat', '/proc/self/status'])"
    words = ["setpriv", "--groups", "0,6", sys.executable, "-c", code, ROOT / "docker/entrypoint"]
    done = command(words, env={**os.environ, **folders})
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(owner[0])] * 4
    assert status["Gid"].split() == [str(becomes)] * 4
    capabilities = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")}
    if owner[0] == 0:
        assert capabilities["CapEff"] and status["Groups"].split() == ["0", "6"]
    else:
        assert not any(capabilities.values()), capabilities
        assert (status["Groups"].split(), status["NoNewPrivs"]) == ([], "1")


def test_the_environment_takes_precedence_over_the_env_file_and_the_allocators_defaults(
    start: StartEntrypoint, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PHASE=3\nOUTPUT_DIR=./elsewhere\nSEED=4\n")
    names = ("PHASE", "OUTPUT_DIR", "DATA_DIR", "SEED", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    show = f"import os; print(*(os.environ[name] for name in {names}))"
    run = start(sys.executable, "-c", show, PHASE="1", MALLOC_TRIM_THRESHOLD_="5")
    *kept, threshold = run.communicate(timeout=30)[0].split()
    assert kept == ["1", str(tmp_path / "elsewhere"), str(tmp_path / "data"), "4", "5"]
    assert int(threshold) >= 1 << 30


def test_relative_paths_of_the_env_file_are_relative_to_its_folder(
    start: StartEntrypoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)

    def seen(lines: dict[str, str], **variables: str) -> dict[str, str]:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        show = f"import json, os; print(json.dumps({{name: os.environ[name] for name in {list(lines)}}}))"
        return dict(json.loads(start(sys.executable, "-c", show, **variables).communicate(timeout=30)[0]))

    relative = dict.fromkeys(("HF_TOKEN_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), "./a/file")
    relative |= {"CONFIG": "mine.yaml", "UPLOAD_TARGET": "folder:copy"}
    found = seen(relative)
    assert {found[name] for name in list(relative)[:3]} == {str(tmp_path / "a/file")}
    assert (found["CONFIG"], found["UPLOAD_TARGET"]) == (f"{tmp_path}/mine.yaml", f"folder:{tmp_path}/copy")
    for others in (found, {"CONFIG": "demo", "UPLOAD_TARGET": "huggingface:me/x"}):
        assert seen(others) == others
    assert seen(dict.fromkeys(relative, "other"), **relative) == relative, "the environment's are the caller's"


def test_latest_is_the_targets_newest_checkpoint_or_the_beginning(start: StartEntrypoint, tmp_path: Path) -> None:
    target = tmp_path / "target"
    variables = {"RESUME_EPOCH": " latest ", "UPLOAD_TARGET": f"folder:{target}", "SHOWN_VARIABLE": "RESUME_EPOCH"}
    run = start("--no-sidecar", "train", **variables, EPOCHS="9")
    assert (run.finish()[0], run.notes()[1]) == (0, "unset")
    _, manifest = checkpoint(target, 3)
    _, config = configure({})
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"config": config.model_dump(mode="json")}))
    manifest.with_name("SEQTRACK_ep0004.json").write_text("{}")  # 4 has no checkpoint file yet
    run = start("--no-sidecar", "train", **variables, EPOCHS="9")
    assert (run.finish()[0], run.notes()[1]) == (0, "3")
    run = start("--no-sidecar", "train", **variables, EPOCHS="3")
    assert (run.finish()[0], run.notes()) == (0, []), "the target has the complete run"
    for different in ({"SEED": "7"}, {"CLASSES": "kite"}):
        code, stderr = start("--no-sidecar", "train", **variables, **different, EPOCHS="3").finish()
        assert (code, "run.other_experiment" in stderr) == (2, True), "another experiment's"
    code, stderr = start("--no-sidecar", "train", RESUME_EPOCH="latest").finish()
    assert (code, "HF_REPO" in stderr) == (2, True)
