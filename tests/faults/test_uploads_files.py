"""What files can do to an upload: grow, change, vanish, carry awkward names; and what the disk can do."""

import ctypes
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from uploads.harness import (
    REPO,
    ROOT,
    Sidecar,
    assert_arrived,
    checkpoint,
    content,
    environ,
    files_of,
    finish,
    on_hub,
    once,
    put,
    sidecar,
    status,
    until,
)
from uploads.hub_server import Hub


def test_a_file_written_slowly_in_pieces_is_sent_when_it_is_whole(hub: Hub, output: Path) -> None:
    path = output / "phase_1" / "report.md"
    with sidecar(environ(hub, output, UPLOAD_SETTLE_S="1")) as running:
        until(lambda: len(on_hub(hub)) >= 7, what="the files that are whole")
        with path.open("wb") as file:
            for piece in range(15):
                file.write(content(500, piece))
                file.flush()
                time.sleep(0.2)
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_a_checkpoint_is_nothing_before_its_manifest_and_goes_with_it(hub: Hub, output: Path) -> None:
    _, manifest = checkpoint(output, 3)
    kept = manifest.read_bytes()
    manifest.unlink()
    with sidecar(environ(hub, output)) as running:
        until(lambda: len(on_hub(hub)) >= 7)
        time.sleep(0.6)
        assert "phase_1/checkpoints/SEQTRACK_ep0003.safetensors" not in on_hub(hub)
        put(manifest, kept)
        finish(output)
        assert running.wait() == 0
    commit = hub.commits_of("phase_1/checkpoints/SEQTRACK_ep0003.json")
    assert commit == hub.commits_of("phase_1/checkpoints/SEQTRACK_ep0003.safetensors")
    assert_arrived(hub, output)


def test_a_growing_log_rides_along_with_a_checkpoint_and_arrives_whole_at_the_end(hub: Hub, output: Path) -> None:
    log = output / "phase_1" / "logs" / "seqtrack-demo.log"
    log.write_text("line 0\n")
    number = 0
    with sidecar(environ(hub, output, UPLOAD_SETTLE_S="2")) as running:

        def arrived() -> bool:
            nonlocal number
            number += 1
            with log.open("a") as file:
                file.write(f"line {number}\n")
            return "phase_1/logs/seqtrack-demo.log" in on_hub(hub)

        until(arrived, what="the log")
        assert "phase_1/checkpoints/SEQTRACK_ep0002.safetensors" in on_hub(hub)
        assert (
            hub.tree(REPO)["phase_1/logs/seqtrack-demo.log"].data
            == log.read_bytes()[: hub.tree(REPO)["phase_1/logs/seqtrack-demo.log"].size]
        )
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


@pytest.mark.parametrize("change", ["append", "truncate", "overwrite", "rename over", "delete"])
def test_a_file_that_changes_while_it_is_sent(hub: Hub, output: Path, change: str) -> None:
    """The old bytes or the new ones arrive, never a mixture; in the end what is there."""
    path = put(output / "phase_1" / "result.bin", content(200_000, "before"))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    fault = hub.fail("batch", hang_s=0.6)
    with sidecar(environ(hub, output)) as running:
        until(lambda: fault.times == 0)
        if change == "append":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "truncate":
            os.truncate(path, 1000)
        elif change == "overwrite":
            with path.open("r+b") as file:
                file.write(content(200_000, "after"))
        elif change == "rename over":
            put(path, content(100_000, "after"))
        else:
            path.unlink()
        finish(output)
        assert running.wait() == 0
    seen = {tree["phase_1/result.bin"].sha256 for _, _, tree in hub.repos[REPO].commits if "phase_1/result.bin" in tree}
    last = {hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else set()
    assert last <= seen <= last | {before}
    assert hub.violations == []
    assert {k: v for k, v in on_hub(hub).items() if k != "phase_1/result.bin"} == {
        k: v for k, v in files_of(output).items() if k != "phase_1/result.bin"
    }


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_checkpoint_written_over_in_place_is_never_sent(hub: Hub, output: Path, moment: str) -> None:
    container, _ = checkpoint(output, 3)
    name = "phase_1/checkpoints/SEQTRACK_ep0003.safetensors"
    fault = hub.fail("batch", hang_s=0.6) if moment == "during" else None
    if fault is None:
        _spoil(container)
    with sidecar(environ(hub, output, UPLOAD_PATIENCE_S="5"), "--once") as running:
        if fault is not None:
            until(lambda: fault.times == 0)
            _spoil(container)
        assert running.wait() == 3
    assert "SEQTRACK_ep0003" in running.said()
    assert name not in on_hub(hub)
    assert name.replace(".safetensors", ".json") not in on_hub(hub)
    assert {k: v for k, v in files_of(output).items() if "0003" not in k} == on_hub(hub)


def _spoil(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"0123456789")


def test_other_bytes_under_the_same_size_and_mtime_are_sent(hub: Hub, output: Path) -> None:
    env = environ(hub, output)
    path = put(output / "phase_1" / "notes.txt", b"first words")
    assert once(env) == 0
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"other words")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert once(env) == 0
    assert on_hub(hub) == files_of(output)


def test_what_is_not_for_the_target_stays_here(hub: Hub, output: Path) -> None:
    outside = put(output.parent / "private.txt", b"not for the world")
    (output / "phase_1" / "link.txt").symlink_to(outside)
    (output / "phase_1" / "linked").symlink_to(output.parent)
    expected = files_of(output)
    for name in ("a.tmp", "b.partial", ".hidden", ".cache/x", "superseded/old.txt", "checkpoints/left.safetensors"):
        put(output / "phase_1" / name, b"no")
    put(output / "phase_1" / "checkpoints" / "SEQTRACK_step00000012.safetensors", b"no")
    put(output / "phase_1" / "checkpoints" / "SEQTRACK_step00000012.json", b"{}")
    assert once(environ(hub, output)) == 0
    assert on_hub(hub) == expected


def test_zero_bytes_and_awkward_names_arrive(hub: Hub, output: Path) -> None:
    put(output / "phase_1" / "leer.txt", b"")
    put(output / "phase_1" / "mit Leerzeichen" / "größe 100% #1?.txt", b"umlauts")
    put(output / "phase_1" / "emoji \U0001f600 & + =.bin", content(3000, "emoji"))
    (output / "phase_1" / "inside.txt").symlink_to(output / "phase_1" / "config.yaml")
    assert once(environ(hub, output)) == 0
    assert on_hub(hub).pop("phase_1/inside.txt") == files_of(output)["phase_1/config.yaml"]
    del hub.tree(REPO)["phase_1/inside.txt"]
    assert_arrived(hub, output)


def test_an_unreadable_file_is_named_and_keeps_no_other_back(hub: Hub, output: Path) -> None:
    expected = files_of(output)
    put(output / "bad.txt", b"bad").chmod(0)
    done = subprocess.run(
        [sys.executable, "-m", "seqtrack", "upload", "--once"],
        env=environ(hub, output),
        preexec_fn=_give_up_the_right_to_read_everything,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert "bad.txt cannot be read" in done.stderr
    assert on_hub(hub) == expected


def _give_up_the_right_to_read_everything() -> None:
    """Take CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH out of what root gets at exec; for others it changes nothing."""
    drop_from_bounding_set = 24
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)


def test_a_thousand_small_files_go_in_one_commit(hub: Hub, output: Path) -> None:
    for number in range(1000):
        put(output / "phase_1" / "boxes" / f"{number:04d}.txt", b"%d" % number)
    assert once(environ(hub, output)) == 0
    assert len(hub.repos[REPO].commits) == 2, "the repo's own first commit, and ours"
    assert_arrived(hub, output)


def test_commits_keep_their_distance(hub: Hub, output: Path) -> None:
    with sidecar(environ(hub, output, UPLOAD_MIN_COMMIT_INTERVAL_S="1.5")) as running:
        for epoch in range(3, 8):
            checkpoint(output, epoch)
            time.sleep(0.5)
        finish(output)
        assert running.wait() == 0
    times = [call["time"] for call in hub.calls if call["stage"] == "commit"]
    assert len(times) >= 2
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 1.4
    assert_arrived(hub, output)


def test_no_space_for_copies_and_journal_stops_no_checkpoint(hub: Hub, output: Path) -> None:
    """A limit on file size stands for the full disk: checkpoints need no copy, and the journal can be done without."""
    put(output / "phase_1" / "large.txt", b"0123456789" * 30_000)
    checkpoint(output, 3, size=500_000)
    env = environ(hub, output, UPLOAD_PATIENCE_S="3")
    done = subprocess.run(
        [sys.executable, "-m", "seqtrack", "upload", "--once"],
        env=env,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert "large.txt cannot be staged" in done.stderr
    assert "the journal" in done.stderr
    assert "phase_1/checkpoints/SEQTRACK_ep0003.safetensors" in on_hub(hub)
    assert once(env) == 0
    assert_arrived(hub, output)


def test_a_folder_that_cannot_be_written_to_is_uploaded_all_the_same(hub: Hub, output: Path) -> None:
    put(output / ".uploads", b"in the way")
    env = environ(hub, output, TMPDIR=str(output.parent))
    with sidecar(env, "--once") as running:
        assert running.wait() == 0
    assert "nothing can be written" in running.said()
    assert_arrived(hub, output)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_volume_that_can_only_be_read_is_uploaded_all_the_same(hub: Hub, disk: Path, tmp_path: Path) -> None:
    output = disk / "output"
    checkpoint(output, 1)
    put(output / "phase_1" / "config.yaml", b"TRAIN: {}\n")
    env = environ(hub, output, TMPDIR=str(tmp_path), HF_HOME=str(tmp_path / "hf"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with Sidecar(env, "--once", log=tmp_path / "log") as running:
        assert running.wait() == 0, running.said()
    assert "nothing can be written" in running.said()
    assert_arrived(hub, output)


def test_a_disk_that_is_full_to_the_last_byte_stops_no_checkpoint(hub: Hub, disk: Path, tmp_path: Path) -> None:
    output = disk / "output"
    checkpoint(output, 1, size=500_000)
    put(output / "phase_1" / "config.yaml", b"TRAIN: {}\n")
    env = environ(hub, output, TMPDIR=str(disk), HF_HOME=str(tmp_path / "hf"), UPLOAD_PATIENCE_S="3")
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_bsize))
    with Sidecar(env, "--once", log=tmp_path / "log") as running:
        assert running.wait() in (0, 3), running.said()
    assert "phase_1/checkpoints/SEQTRACK_ep0001.safetensors" in on_hub(hub), running.said()
    (disk / "filler").unlink()
    assert once(env) == 0
    assert_arrived(hub, output)


def test_a_damaged_manifest_is_named_and_not_sent(hub: Hub, output: Path) -> None:
    _, manifest = checkpoint(output, 3)
    put(manifest, b"{ not json")
    with sidecar(environ(hub, output), "--once") as running:
        assert running.wait() == 3
    assert "SEQTRACK_ep0003.json is not readable JSON" in running.said()
    assert {k: v for k, v in files_of(output).items() if "0003" not in k} == on_hub(hub)


def test_a_lock_keeps_a_second_sidecar_out(hub: Hub, output: Path) -> None:
    with sidecar(environ(hub, output)) as first:
        until(lambda: status(output))
        second = subprocess.run(
            [sys.executable, "-m", "seqtrack", "upload", "--once"],
            env=environ(hub, output, UPLOAD_PATIENCE_S="0.5"),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode == 2
        assert "another sidecar" in second.stderr
        assert first.process.poll() is None


def test_memory_stays_small_idle_and_while_a_gigabyte_is_sent(tmp_path: Path) -> None:
    hub = Hub(keep_bytes=False).start()
    output = tmp_path / "output"
    big = put(output / "phase_1" / "big.bin", b"begin")
    env = environ(hub, output, UPLOAD_READ_TIMEOUT_S="60", UPLOAD_DEADLINE_S="300", UPLOAD_GRACE_S="60")
    with sidecar(env) as running:
        until(lambda: on_hub(hub) and status(output).get("queue") == 0)
        assert _megabytes(running.process.pid) < 150
        os.truncate(big, 1_100_000_000)  # sparse: it costs time, not disk
        peak = 0.0

        def sent() -> bool:
            nonlocal peak
            peak = max(peak, _megabytes(running.process.pid))
            return hub.tree(REPO)["phase_1/big.bin"].size == 1_100_000_000

        until(sent, 120)
    hub.stop()
    hub.discard()
    assert 30 < peak < 300, f"{peak:.0f} MB"


@pytest.mark.long
def test_over_five_gigabytes_with_bounded_memory(tmp_path: Path) -> None:
    hub = Hub(keep_bytes=False).start()
    output = tmp_path / "output"
    big = put(output / "phase_1" / "big.bin", b"begin")
    os.truncate(big, 5_500_000_000)
    env = environ(hub, output, UPLOAD_READ_TIMEOUT_S="60", UPLOAD_DEADLINE_S="300", UPLOAD_PATIENCE_S="300")
    peak = 0.0
    with sidecar(env, "--once") as running:
        while running.process.poll() is None:
            peak = max(peak, _megabytes(running.process.pid))
            time.sleep(0.05)
        assert running.wait() == 0
    hub.stop()
    hub.discard()
    assert peak < 300, f"{peak:.0f} MB"
    assert hub.tree(REPO)["phase_1/big.bin"].size == 5_500_000_000


def _megabytes(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    total = 0
    for place in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in place.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(lines["Pid"]) == pid or int(lines["PPid"]) == pid:
            total += int(lines.get("VmRSS", "0 kB").split()[0])
    return total / 1000


def test_the_sidecar_needs_no_torch_and_no_numpy(hub: Hub, output: Path, tmp_path: Path) -> None:
    """A hook refuses them in the sidecar and in its child; the upload works all the same."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'numpy', 'torchvision'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    env = environ(hub, output, PYTHONPATH=f"{hook}{os.pathsep}{ROOT}")
    blocked = subprocess.run(
        [sys.executable, "-c", "import numpy"], env=env, capture_output=True, text=True, timeout=30
    )
    assert "is blocked" in blocked.stderr
    assert once(env) == 0
    assert_arrived(hub, output)


def test_without_a_target_it_says_so_once_and_ends_well(hub: Hub, output: Path) -> None:
    env = environ(hub, output, HF_REPO="")
    with sidecar(env) as running:
        assert running.wait() == 0
    assert running.said().count("\n") == 1
    assert "HF_REPO" in running.said()


def test_it_waits_for_training_that_has_not_begun(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with sidecar(environ(hub, output)) as running:
        until(lambda: status(output))
        time.sleep(1.0)
        assert running.process.poll() is None
        checkpoint(output, 1)
        finish(output, state="running")
        until(lambda: len(on_hub(hub)) == 3)
        time.sleep(1.0)
        assert running.process.poll() is None
        finish(output)
        assert running.wait() == 0
    assert json.loads((output / ".uploads" / "status.json").read_text())["state"] == "done"
    assert_arrived(hub, output, commits_each=None)


def test_a_finished_phase_1_does_not_end_it_while_phase_2_is_starting(hub: Hub, output: Path) -> None:
    finish(output)
    env = environ(hub, output, UPLOAD_START_GRACE_S="12")
    with sidecar(env) as running:
        until(lambda: status(output).get("queue") == 0 and len(on_hub(hub)) == len(files_of(output)))
        assert running.process.poll() is None, "phase 2 may be about to begin"
        finish(output, phase=2, state="running")
        checkpoint(output, 4, phase=2)
        time.sleep(12.0)
        assert running.process.poll() is None, "phase 2 is not complete"
        finish(output, phase=2)
        put(output / "comparison" / "certificate.json", b"{}")
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


def test_a_log_that_never_rests_is_sent_from_time_to_time_without_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    log = put(output / "phase_1" / "logs" / "train.log", b"line 0\n")
    times = 0

    def sent_twice() -> bool:
        nonlocal times
        times += 1
        with log.open("a") as file:
            file.write(f"line {times}\n")
        return REPO in hub.repos and len(hub.commits_of("phase_1/logs/train.log")) >= 2

    with sidecar(environ(hub, output, UPLOAD_SETTLE_S="60", UPLOAD_LOG_INTERVAL_S="0.5")):
        until(sent_twice)


def test_small_files_that_would_fill_the_memory_come_in_several_commits(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    hub.lfs_above = 1 << 40
    for number in range(4):
        put(output / f"{number}.txt", f"{number:01023d}\n".encode() * 12_000)
    assert once(environ(hub, output)) == 0
    assert len(hub.repos[REPO].commits) == 3, "two of 12 MB in each, after the repo's own"
    assert_arrived(hub, output)
