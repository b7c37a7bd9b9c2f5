"""Everything from outside that can end a run or take its screen away: the run saves and reports why, or continues."""

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from runs import PATIENCE_S, Ended, children, command, environment, log_of, start, train

from seqtrack.process import STOP_SIGNALS

LONG = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "40000"}


def _state(output: Path) -> str:
    return str(json.loads((output / "phase_1" / "run.json").read_text())["state"])


@pytest.mark.parametrize(
    ("number", "worker_hangs"),
    [(signal.SIGTERM, True)] + [pytest.param(one, False, marks=pytest.mark.long) for one in STOP_SIGNALS],
)
def test_every_signal_that_would_end_a_run_saves_it_and_is_named(
    number: signal.Signals, worker_hangs: bool, demo_data: Path, tmp_path: Path
) -> None:
    with start(environment(tmp_path, demo_data, {**LONG, "TRAIN.NUM_WORKER": int(worker_hangs)})) as running:
        assert running.until(lambda: "Epoch 1 :" in running.said())
        for child in children(running.pid):
            os.kill(child, signal.SIGSTOP)
        running.signal(number)
        ended = running.end()
    assert ended.code == 75, ended.said
    assert _state(tmp_path) == "stopped"
    assert number.name in log_of(tmp_path)
    assert list((tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_step*.safetensors"))


def _own(screen: str, ignore: bool) -> None:
    """Become the owner of a terminal, and show everything on it."""
    os.setsid()
    if ignore:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handle = os.open(screen, os.O_RDWR)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.long)], ids=["", "under nohup"])
def test_a_terminal_that_is_closed_stops_a_run_or_under_nohup_does_not(
    ignored: bool, demo_data: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    seen = b""

    def shows() -> bool:
        nonlocal seen
        try:
            seen += os.read(ours, 4096)
        except BlockingIOError:
            return False
        return b"Epoch 1 :" in seen

    env = environment(tmp_path, demo_data, {} if ignored else LONG)
    with start(env, prepare=partial(_own, os.ttyname(theirs), ignored)) as running:
        assert running.until(shows)
        os.close(theirs)
        os.close(ours)  # SIGHUP to the session, and EIO for every later output
        assert running.end().code == (0 if ignored else 75)
    assert _state(tmp_path) == ("complete" if ignored else "stopped")
    assert ignored or "SIGHUP" in log_of(tmp_path)


def _shell(line: str, env: dict[str, str]) -> Ended:
    """`seqtrack` by a shell's line, in which "$@" is the command."""
    words = ["bash", "-c", line, "bash", sys.executable, "-m", "seqtrack"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, env=env, cwd=tempfile.gettempdir(), **streams, text=True, timeout=PATIENCE_S)
    return Ended(done.returncode, done.stdout)


def test_closed_streams_end_nothing_and_their_descriptors_go_to_no_file(demo_data: Path, tmp_path: Path) -> None:
    keys = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}
    ended = _shell('exec "$@" train <&- >&- 2>&-', environment(tmp_path, demo_data, keys, EPOCHS="1"))
    assert (ended.code, ended.said) == (0, "")
    assert _state(tmp_path) == "complete"


@pytest.mark.parametrize(("screen", "code"), [(">/dev/full", 1), pytest.param("| true", 0, marks=pytest.mark.long)])
def test_unwritten_output_is_an_error_unless_nobody_reads_it(
    screen: str, code: int, demo_data: Path, tmp_path: Path
) -> None:
    ended = _shell(f'set -o pipefail; "$@" plan {screen}', environment(tmp_path, demo_data))
    assert "Traceback" not in ended.said and "Exception ignored" not in ended.said
    assert (ended.code, ended.codes) == (code, ["output.unwritten"] * code)


@pytest.mark.parametrize(
    ("limit", "value", "code"),
    [
        ("-v", 1_500_000, "limits.address_space"),
        pytest.param("-v", 3_000_000, "limits.address_space", marks=pytest.mark.long),
        ("-n", 6, "limits.open_files"),
    ],
)
def test_a_limit_that_is_too_low_is_one_line_with_its_value(
    limit: str, value: int, code: str, demo_data: Path, tmp_path: Path
) -> None:
    ended = _shell(f'ulimit {limit} {value}; exec "$@" train', environment(tmp_path, demo_data))
    assert (ended.code, ended.codes) == (1, [code]), ended.said
    assert str(value) in ended.said and "Traceback" not in ended.said


def test_a_path_that_the_locale_cannot_express_is_named_with_the_locales_encoding(
    demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path / "dü", demo_data, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    ended = command("train", env=env)
    assert ended.code == 2 and len(ended.codes) == 1, ended.said
    assert all(part in ended.said for part in ("OUTPUT_DIR", "LC_ALL=C.UTF-8", "ascii"))


def test_a_librarys_thread_that_fails_prints_no_traceback(demo_data: Path, tmp_path: Path, disk: Path) -> None:
    """TensorBoard writes in a thread of its own."""
    subprocess.run(["mount", "-o", "remount,size=4k", disk], check=True)
    logs = tmp_path / "phase_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "tensorboard").symlink_to(disk)
    ended = train(environment(tmp_path, demo_data, {"TRAIN.PRINT_INTERVAL": "1"}, EPOCHS="6"))
    assert ended.code == 0, ended.said
    assert "Traceback" not in ended.said and "Exception in thread" not in ended.said
    (line,) = [line for line in ended.said.splitlines() if "No space left" in line]
    assert "tensorboard" in line
    assert "Traceback" in log_of(tmp_path)
