"""Everything from outside that can end a run or take its screen away: the run saves and reports why, or continues."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path

import pytest
from runs import PATIENCE_S, Ended, environment, log_of, start, train

LONG = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "40000"}


def _state(output: Path) -> str:
    return str(json.loads((output / "phase_1" / "run.json").read_text())["state"])


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
        return b"epoch 1/" in seen

    env = environment(tmp_path, demo_data, {} if ignored else LONG)
    with start(env, prepare=partial(_own, os.ttyname(theirs), ignored)) as running:
        assert running.until(shows)
        os.close(theirs)
        os.close(ours)  # SIGHUP to the session, and EIO for every later output
        assert running.end().code == (0 if ignored else 75)
    assert _state(tmp_path) == ("complete" if ignored else "stopped")
    assert ignored or "SIGHUP" in log_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "code", "codes"),
    [
        ('exec "$@" train <&- >&- 2>&-', 0, []),
        ('set -o pipefail; "$@" plan >/dev/full', 1, ["output.unwritten"]),
        pytest.param('set -o pipefail; "$@" plan | true', 0, [], marks=pytest.mark.long),
        ('ulimit -v 1500000; exec "$@" train', 1, ["limits.address_space"]),
        ('ulimit -n 6; exec "$@" train', 1, ["limits.open_files"]),
    ],
    ids=["closed streams", "output that nothing takes", "output that nobody reads", "little memory", "few files"],
)
def test_closed_streams_end_nothing_and_unwritten_output_or_a_low_limit_is_one_line(
    line: str, code: int, codes: list[str], demo_data: Path, tmp_path: Path
) -> None:
    """By a shell's line, in which "$@" is `seqtrack`."""
    env = environment(tmp_path, demo_data, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}, EPOCHS="1")
    words = ["bash", "-c", line, "bash", sys.executable, "-m", "seqtrack"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, env=env, cwd=tmp_path.parent, **streams, text=True, timeout=PATIENCE_S)
    ended = Ended(done.returncode, done.stdout)
    assert (ended.code, ended.codes) == (code, codes), ended.said
    assert "Traceback" not in ended.said and "Exception ignored" not in ended.said
    assert all(value in ended.said for value in re.findall(r"ulimit -\w (\d+)", line))
    if ">&-" in line:
        assert (ended.said, _state(tmp_path)) == ("", "complete")


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


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_an_epoch_is_one_line_that_does_not_wrap_and_the_file_has_all_lines(
    columns: int, demo_data: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.set_blocking(ours, False)
    output, seen = tmp_path / "o", b""

    def ended() -> bool:
        nonlocal seen
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: the run was the last to have the terminal open
            seen += os.read(ours, 65536)
        return not running.process.is_alive()

    env = environment(output, demo_data, SEQTRACK_COMMAND="scripts/local.sh", COLUMNS="", LINES="")
    with start(env, prepare=partial(_own, os.ttyname(theirs), False)) as running:
        running.until(ended)
        ended()
        assert running.end().code == 0, seen.decode()
    os.close(ours)
    os.close(theirs)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n").splitlines()
    shown = [line for line in lines if str(output) not in line]  # a path cannot be wrapped
    assert max(map(len, shown)) <= columns, max(shown, key=len)
    epochs = [
        line for line in lines if re.fullmatch(r"epoch \d/3  loss [\d.]+  IoU [\d.]+  [\d.]+/s  ETA run [\d:]+", line)
    ]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"] and epochs[-1].endswith(" 0:00")
    assert any(re.match(r"epoch 2/3  loss .* ETA run .*\u2588", line) for line in lines), "a bar with numbers"
    assert str(output / "phase_1") in " ".join(lines) and "scripts/local.sh evaluate --phase 1" in " ".join(lines)
    assert "samples , time for last" not in seen.decode()
    assert log_of(output).count("samples , time for last") == 3 * 6
