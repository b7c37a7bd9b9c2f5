"""What files can do to an upload: grow, change, vanish, have unusual names; and what the disk can do."""

import ctypes
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uploads.harness import (
    REPO,
    ROOT,
    FakeTime,
    assert_arrived,
    checkpoint,
    content,
    environ,
    files_of,
    finish,
    on_hub,
    once,
    put,
    status,
    until,
    uploader,
    uploader_process,
    watch,
)
from uploads.hub_server import Hub

from seqtrack.cli import main
from seqtrack.uploads.client import Clock

HALF = "phase_1/checkpoints/SEQTRACK_ep0003.safetensors"


def append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def test_a_file_written_slowly_in_pieces_is_sent_when_it_is_complete(hub: Hub, output: Path) -> None:
    fake = FakeTime()
    for piece in range(20):
        fake.after(3 * piece, lambda piece=piece: append(output / "phase_1" / "report.md", content(500, piece)))
    finish(output)
    assert watch(hub, output, time=fake) == 0
    assert_arrived(hub, output)


def test_a_checkpoint_is_nothing_before_its_manifest_and_goes_with_it(hub: Hub, output: Path) -> None:
    fake, (_, manifest) = FakeTime(), checkpoint(output, 3)
    kept = manifest.read_bytes()
    manifest.unlink()
    put(output / "phase_1" / "checkpoints" / "SEQTRACK_ep0004.json", kept)

    def complete() -> None:
        assert len(on_hub(hub)) == 7
        manifest.with_name("SEQTRACK_ep0004.json").unlink()
        put(manifest, kept)
        finish(output)

    fake.after(100, complete)
    assert watch(hub, output, time=fake) == 0
    assert hub.commits_of(HALF) == hub.commits_of(HALF.replace(".safetensors", ".json"))
    assert_arrived(hub, output)


def test_a_growing_log_goes_with_a_checkpoint_and_arrives_complete_at_the_end(hub: Hub, output: Path) -> None:
    name, fake = "phase_1/logs/seqtrack-demo.log", FakeTime()
    for second in range(60):
        fake.after(second, lambda: append(output / name, b"line\n"))
    fake.after(60, lambda: finish(output))
    append(output / name, b"line 0\n")
    assert watch(hub, output, time=fake) == 0
    first, last = hub.commits_of(name)
    assert first == hub.commits_of("phase_1/checkpoints/SEQTRACK_ep0002.safetensors")[0] != last
    assert_arrived(hub, output, commits_each=None)


def test_a_log_that_never_settles_is_sent_every_ten_minutes_without_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    log, fake = tmp_path / "output" / "phase_1" / "logs" / "train.log", FakeTime()
    for second in range(0, 1900, 2):
        fake.after(second, lambda: append(log, b"line\n"))
    fake.after(1900, lambda: fake.stop.set())
    assert watch(hub, tmp_path / "output", time=fake) == 0
    assert len(hub.commits_of("phase_1/logs/train.log")) == 4, "three on the way, and the end"
    assert_arrived(hub, tmp_path / "output", commits_each=None)


CHANGES: dict[str, Callable[[Path], object]] = {
    "append": lambda path: append(path, b"more"),
    "truncate": lambda path: os.truncate(path, 1000),
    "overwrite": lambda path: path.write_bytes(content(200_000, "after")),
    "rename over": lambda path: put(path, content(100_000, "after")),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", ["copied", "sent from its place"])
def test_a_file_that_changes_while_it_is_sent(
    hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch, change: str, size: str
) -> None:
    """The old bytes or the new ones arrive, never a mixture; in the end the current ones."""
    path = put(output / "phase_1" / "result.bin", content(200_000, "before"))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    if size != "copied":
        monkeypatch.setattr("seqtrack.uploads.uploader._COPY_LIMIT", 1000)
    hub.fail("batch", action=lambda: CHANGES[change](path))
    finish(output)
    assert watch(hub, output) == 0
    seen = {tree["phase_1/result.bin"].sha256 for _, _, tree in hub.repos[REPO].commits if "phase_1/result.bin" in tree}
    last = {hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else set()
    assert last <= seen <= last | {before}
    assert {**on_hub(hub), "phase_1/result.bin": ""} == {**files_of(output), "phase_1/result.bin": ""}
    assert hub.violations == []


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_checkpoint_overwritten_in_place_is_never_sent(hub: Hub, output: Path, moment: str) -> None:
    path, _ = checkpoint(output, 3)

    def spoil() -> None:
        with path.open("r+b") as file:
            file.seek(-10, os.SEEK_END)
            file.write(b"0123456789")

    if moment == "before":
        spoil()
    else:
        hub.fail("batch", action=spoil)
    assert once(hub, output) == 3
    assert list(status(output)["problems"]) == [HALF]
    assert {k: v for k, v in files_of(output).items() if "0003" not in k} == on_hub(hub)


def test_other_bytes_under_the_same_size_and_mtime_are_sent(hub: Hub, output: Path) -> None:
    path = put(output / "phase_1" / "notes.txt", b"first words")
    assert once(hub, output) == 0
    before = path.stat()
    path.write_bytes(b"other words")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert once(hub, output) == 0
    assert on_hub(hub) == files_of(output)


def test_what_is_not_for_the_target_stays_here_and_unusual_names_arrive(hub: Hub, output: Path) -> None:
    phase = output / "phase_1"
    put(phase / "leer.txt", b"")
    put(phase / "mit Leerzeichen" / "größe 100% #1?.txt", b"umlauts")
    put(phase / "emoji \U0001f600 & + =.bin", content(3000, "emoji"))
    expected = files_of(output)
    (phase / "inside.txt").symlink_to(phase / "config.yaml")
    expected["phase_1/inside.txt"] = expected["phase_1/config.yaml"]
    (phase / "link.txt").symlink_to(put(output.parent / "private.txt", b"not for the world"))
    (phase / "linked").symlink_to(output.parent)
    (phase / "loop").symlink_to(phase / "loop")
    for name in ("a.tmp", "b.partial", ".hidden", ".cache/x", "superseded/old.txt", "checkpoints/left.safetensors"):
        put(phase / name, b"no")
    put(phase / "checkpoints" / "SEQTRACK_step00000012.safetensors", b"no")
    put(phase / "checkpoints" / "SEQTRACK_step00000012.json", b"{}")
    assert once(hub, output) == 0
    assert on_hub(hub) == expected
    (output / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"no")
    put(phase / "checkpoints" / "SEQTRACK_ep0002.json", b"{ not json")
    assert once(hub, output) == 3
    bad = {"phase_1/checkpoints/SEQTRACK_ep0002.json", ascii(os.fsdecode(b"not utf-8 \xff"))}
    assert (status(output)["problems"].keys(), on_hub(hub)) == (bad, expected)


def limited(env: dict[str, str], limit: Callable[[], None]) -> "subprocess.CompletedProcess[str]":
    """One pass in a process that is limited before it starts."""
    command = [sys.executable, "-m", "seqtrack", "upload", "--once"]
    return subprocess.run(command, env=env, preexec_fn=limit, capture_output=True, text=True, timeout=120)


def test_an_unreadable_file_is_named_and_holds_no_other_up(hub: Hub, output: Path) -> None:
    expected = files_of(output)
    put(output / "bad.txt", b"bad").chmod(0)

    def drop_the_right_to_read_everything() -> None:
        """CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, out of what root gets at exec; for others it changes nothing."""
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP

    done = limited(environ(hub, output, settle_s=0.2, poll_s=0.1), drop_the_right_to_read_everything)
    assert done.returncode == 3, done.stderr
    assert list(status(output)["problems"]) == ["bad.txt"]
    assert on_hub(hub) == expected


def test_a_thousand_small_files_go_in_one_commit_even_after_a_slow_first_walk(hub: Hub, output: Path) -> None:
    for number in range(1000):
        put(output / "phase_1" / "boxes" / f"{number:04d}.txt", b"%d" % number)
    fake, walked = FakeTime(), itertools.chain((0.0, 0.0), itertools.repeat(1000.0))
    fake.__class__ = type("Slow", (FakeTime,), {"clock": property(lambda self: Clock(
        monotonic=lambda: self.now + next(walked), wall=lambda: self.now, sleep=self.sleep
    ))})  # fmt: skip
    assert once(hub, output, time=fake, patience_s=2000) == 0
    assert len(hub.repos[REPO].commits) == 2, "the repo's own first commit, and ours"
    assert_arrived(hub, output)


def test_commits_keep_their_distance(hub: Hub, output: Path) -> None:
    fake = FakeTime()
    for epoch in range(3, 13):
        fake.after(7 * epoch, lambda epoch=epoch: checkpoint(output, epoch))
    fake.after(100, lambda: finish(output))
    with uploader(hub, output, time=fake) as (at_work, runner):
        assert at_work.run() == 0
    assert 3 <= hub.stages().count("commit") <= 6
    commits = runner.called_at[: hub.stages().count("commit")]
    assert min(later - earlier for earlier, later in itertools.pairwise(commits)) >= 30
    assert_arrived(hub, output)


def test_small_files_that_would_fill_the_memory_come_in_several_commits(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for number in range(5):
        put(output / f"{number}.txt", f"{number:01023d}\n".encode() * 9_000)
    hub.lfs_above = 1 << 40
    assert once(hub, output) == 0
    assert len(hub.repos[REPO].commits) == 3, "three of 9 MB in the first, after the repo's own"
    assert_arrived(hub, output)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("trouble", ["read-only", "full"])
def test_a_disk_that_takes_nothing_stops_no_checkpoint(hub: Hub, disk: Path, tmp_path: Path, trouble: str) -> None:
    output = disk / "output"
    checkpoint(output, 1, size=500_000)
    put(output / "phase_1" / "config.yaml", b"TRAIN: {}\n")
    variables = {"HF_HOME": str(tmp_path / "hf")}
    environ(hub, output)  # writes the token
    if trouble == "full":
        state = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_bsize))
        variables["TMPDIR"] = str(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    log = tmp_path / "log"
    with uploader_process(hub, output, "--once", variables=variables, log=log, patience_s=3) as running:
        assert running.end() == (3 if trouble == "full" else 0), running.said()
    assert "phase_1/checkpoints/SEQTRACK_ep0001.safetensors" in on_hub(hub), running.said()
    if trouble == "full":
        assert "phase_1/config.yaml" not in on_hub(hub)
        (disk / "filler").unlink()
        assert once(hub, output) == 0
    assert_arrived(hub, output)


def test_a_lock_keeps_a_second_uploader_out(hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with uploader(hub, output, patience_s=0.1, poll_s=0.05), pytest.raises(BlockingIOError):
        once(hub, output)
    with uploader(hub, output, patience_s=0.1, poll_s=0.05):
        assert main(["upload", "--once"]) == 2


@pytest.mark.parametrize(
    "size", [300_000_000, pytest.param(5_500_000_000, marks=pytest.mark.long)], ids=["some", "over 5 GB"]
)
def test_memory_stays_small_while_a_large_file_is_sent(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.keep_bytes = False
    output = tmp_path / "output"
    big = put(output / "phase_1" / "big.bin", b"begin")
    os.truncate(big, size)  # sparse: it costs time, not disk
    peak = 0.0
    slow = {"read_timeout_s": 60.0, "deadline_s": 300.0, "patience_s": 300.0}
    with uploader_process(hub, output, "--once", **slow) as running:

        def ended() -> bool:
            nonlocal peak
            peak = max(peak, _megabytes(running.pid))
            return running.poll() is not None

        until(ended, 280)
        assert running.end() == 0
    assert hub.tree(REPO)["phase_1/big.bin"].size == size
    assert 30 < peak < 250, f"{peak:.0f} MB"


def _megabytes(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    total = 0
    for place in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in place.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if pid in (int(lines["Pid"]), int(lines["PPid"])):
            total += int(lines.get("VmRSS", "0 kB").split()[0])
    return total / 1000


def test_the_uploader_needs_no_torch_and_no_numpy(hub: Hub, output: Path, tmp_path: Path) -> None:
    """A hook refuses them in the uploader and in its child; the upload works all the same."""
    hook = put(
        tmp_path / "hook" / "sitecustomize.py",
        b"import sys\n"
        b"class Refuse:\n"
        b"    def find_spec(self, name, path=None, target=None):\n"
        b"        if name.split('.')[0] in ('torch', 'numpy', 'torchvision'):\n"
        b"            raise ImportError(name + ' is blocked')\n"
        b"sys.meta_path.insert(0, Refuse())\n",
    )
    variables = {"PYTHONPATH": f"{hook.parent}{os.pathsep}{ROOT}"}
    env = environ(hub, output, variables=variables)
    blocked = subprocess.run([sys.executable, "-c", "import numpy"], env=env, capture_output=True, text=True)
    assert "is blocked" in blocked.stderr
    with uploader_process(hub, output, "--once", variables=variables) as running:
        assert running.end() == 0
    assert_arrived(hub, output)


def test_without_a_target_it_ends_with_one_line(hub: Hub, output: Path) -> None:
    with uploader_process(hub, output, variables={"HF_REPO": ""}) as running:
        assert running.end() == 0
    assert running.said().count("\n") == 1
    assert "HF_REPO" in running.said()


def test_it_waits_for_training_and_ends_when_the_last_run_is_complete(hub: Hub, tmp_path: Path) -> None:
    output, fake = tmp_path / "output", FakeTime()
    began = fake.now
    fake.after(500, lambda: (checkpoint(output, 1), finish(output, state="running")))
    fake.after(900, lambda: finish(output))
    assert watch(hub, output, time=fake) == 0
    assert 900 < fake.now - began < 980
    assert status(output)["state"] == "done"
    assert_arrived(hub, output, commits_each=None)


def test_a_finished_phase_1_does_not_end_it_while_phase_2_is_starting(hub: Hub, output: Path) -> None:
    finish(output)
    fake, began = FakeTime(), FakeTime().now
    fake.after(50, lambda: (finish(output, phase=2, state="running"), checkpoint(output, 4, phase=2)))
    fake.after(300, lambda: finish(output, phase=2))
    fake.after(350, lambda: put(output / "comparison" / "certificate.json", b"{}"))
    assert watch(hub, output, time=fake) == 0
    assert fake.now - began > 350
    assert_arrived(hub, output, commits_each=None)
