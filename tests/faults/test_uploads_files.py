"""What files can do to an upload: grow, change, vanish, have unusual names; and what the disk can do."""

import errno
import hashlib
import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from uploads import harness as up
from uploads.hub_server import Hub
from uploads.xet_server import XetHub

from seqtrack.cli import main
from seqtrack.uploads.client import Clock

HALF = "phase_1/checkpoints/SEQTRACK_ep0003.safetensors"


def append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def test_a_checkpoint_is_nothing_before_its_manifest_and_goes_with_it(hub: Hub, output: Path) -> None:
    fake, (_, manifest) = up.FakeTime(), up.checkpoint(output, 3)
    other = manifest.rename(manifest.with_name("SEQTRACK_ep0004.json"))

    def complete() -> None:
        assert len(up.on_hub(hub)) == 7
        other.rename(manifest)
        up.finish(output)

    fake.after(100, complete)
    assert up.watch(hub, output, time=fake) == 0
    assert hub.commits_of(HALF) == hub.commits_of(HALF.replace(".safetensors", ".json"))
    up.assert_arrived(hub, output)


def test_a_growing_log_goes_with_a_checkpoint_and_arrives_complete_at_the_end(hub: Hub, output: Path) -> None:
    name, fake = "phase_1/logs/seqtrack-demo.log", up.FakeTime()
    for second in range(60):
        fake.after(second, lambda: append(output / name, b"line\n"))
    fake.after(60, lambda: up.finish(output))
    append(output / name, b"line 0\n")
    assert up.watch(hub, output, time=fake) == 0
    first, last = hub.commits_of(name)
    assert first == hub.commits_of("phase_1/checkpoints/SEQTRACK_ep0002.safetensors")[0] != last
    up.assert_arrived(hub, output, commits_each=None)


def test_a_log_that_never_settles_is_sent_every_ten_minutes_without_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    log, fake = tmp_path / "output" / "phase_1" / "logs" / "train.log", up.FakeTime()
    for second in range(0, 1900, 2):
        fake.after(second, lambda: append(log, b"line\n"))
    fake.after(1900, lambda: fake.stop.set())
    assert up.watch(hub, tmp_path / "output", time=fake) == 0
    assert len(hub.commits_of("phase_1/logs/train.log")) == 4, "three on the way, and the end"
    up.assert_arrived(hub, tmp_path / "output", commits_each=None)


BEFORE_BYTES = {Hub: "batch", XetHub: "xet-token"}  # the call before bytes are read
CHANGES: dict[str, Callable[[Path], object]] = {
    "append": lambda path: append(path, b"more"),
    "truncate": lambda path: os.truncate(path, 1000),
    "overwrite": lambda path: path.write_bytes(up.content(200_000, "after")),
    "rename over": lambda path: up.put(path, up.content(100_000, "after")),
    "delete": lambda path: path.unlink(),
}


@up.BOTH_WAYS
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", ["copied", "sent from its place"])
def test_a_file_that_changes_while_it_is_sent(
    hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch, change: str, size: str
) -> None:
    """The old bytes or the new ones arrive, never a mixture; in the end the current ones."""
    path = up.put(output / "phase_1" / "result.bin", up.content(200_000, "before"))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    if size != "copied":
        monkeypatch.setattr("seqtrack.uploads.uploader._COPY_LIMIT", 1000)
    hub.fail(BEFORE_BYTES[type(hub)], action=lambda: CHANGES[change](path))
    up.finish(output)
    assert up.watch(hub, output) == 0
    trees = [tree for _, _, tree in hub.repos[up.REPO].commits]
    seen = {tree["phase_1/result.bin"].sha256 for tree in trees if "phase_1/result.bin" in tree}
    last = {hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else set()
    assert last <= seen <= last | {before}
    assert {**up.on_hub(hub), "phase_1/result.bin": ""} == {**up.files_of(output), "phase_1/result.bin": ""}
    assert hub.violations == []


@up.BOTH_WAYS
@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_checkpoint_overwritten_in_place_is_never_sent(hub: Hub, output: Path, moment: str) -> None:
    path, _ = up.checkpoint(output, 3)

    def spoil() -> None:
        with path.open("r+b") as file:
            file.seek(-10, os.SEEK_END)
            file.write(b"0123456789")

    if moment == "before":
        spoil()
    else:
        hub.fail(BEFORE_BYTES[type(hub)], action=spoil)
    assert up.once(hub, output) == 3
    assert list(up.status(output)["problems"]) == [HALF]
    assert {k: v for k, v in up.files_of(output).items() if "0003" not in k} == up.on_hub(hub)


def test_other_bytes_under_the_same_size_and_mtime_are_sent(hub: Hub, output: Path) -> None:
    path = up.put(output / "phase_1" / "notes.txt", b"first words")
    assert up.once(hub, output) == 0
    before = path.stat()
    path.write_bytes(b"other words")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert up.once(hub, output) == 0
    assert up.on_hub(hub) == up.files_of(output)


def test_what_is_not_for_the_target_stays_here_and_unusual_names_arrive(hub: Hub, output: Path) -> None:
    phase, put = output / "phase_1", up.put
    put(phase / "leer.txt", b"")
    put(phase / "mit Leerzeichen" / "größe 100% #1?.txt", b"umlauts")
    put(phase / "emoji \U0001f600 & + =.bin", up.content(3000, "emoji"))
    expected = up.files_of(output)
    (phase / "inside.txt").symlink_to(phase / "config.yaml")
    expected["phase_1/inside.txt"] = expected["phase_1/config.yaml"]
    (phase / "link.txt").symlink_to(put(output.parent / "private.txt", b"not for the world"))
    (phase / "linked").symlink_to(output.parent)
    (phase / "loop").symlink_to(phase / "loop")
    for name in ("a.tmp", "b.partial", ".hidden", ".cache/x", "superseded/old.txt", "checkpoints/left.safetensors"):
        put(phase / name, b"no")
    put(phase / "checkpoints" / "SEQTRACK_step00000012.safetensors", b"no")
    put(phase / "checkpoints" / "SEQTRACK_step00000012.json", b"{}")
    assert up.once(hub, output) == 0
    assert up.on_hub(hub) == expected
    (output / os.fsdecode(b"not utf-8 \xff")).write_bytes(b"no")
    put(phase / "checkpoints" / "SEQTRACK_ep0002.json", b"{ not json")
    assert up.once(hub, output) == 3
    bad = {"phase_1/checkpoints/SEQTRACK_ep0002.json", ascii(os.fsdecode(b"not utf-8 \xff"))}
    assert (up.status(output)["problems"].keys(), up.on_hub(hub)) == (bad, expected)


def test_a_thousand_small_files_go_in_one_commit_even_after_a_slow_first_walk(hub: Hub, output: Path) -> None:
    for number in range(1000):
        up.put(output / "phase_1" / "boxes" / f"{number:04d}.txt", b"%d" % number)
    walked = itertools.chain((0.0, 0.0), itertools.repeat(1000.0))

    class Slow(up.FakeTime):
        @property
        def clock(self) -> Clock:
            return Clock(monotonic=lambda: self.now + next(walked), wall=lambda: self.now, sleep=self.sleep)

    assert up.once(hub, output, time=Slow(), patience_s=2000) == 0
    assert len(hub.repos[up.REPO].commits) == 2, "the repo's own first commit, and ours"
    up.assert_arrived(hub, output)


def test_commits_keep_their_distance(hub: Hub, output: Path) -> None:
    fake = up.FakeTime()
    for epoch in range(3, 13):
        fake.after(7 * epoch, lambda epoch=epoch: up.checkpoint(output, epoch))
    fake.after(100, lambda: up.finish(output))
    with up.uploader(hub, output, time=fake) as (at_work, runner):
        assert at_work.run() == 0
    assert 3 <= hub.stages().count("commit") <= 6
    commits = runner.called_at[: hub.stages().count("commit")]
    assert min(later - earlier for earlier, later in itertools.pairwise(commits)) >= 30
    up.assert_arrived(hub, output)


@pytest.mark.parametrize("trouble", ["read-only", "full"])
def test_a_disk_that_takes_nothing_stops_no_checkpoint(hub: Hub, disk: Path, tmp_path: Path, trouble: str) -> None:
    output = disk / "output"
    up.checkpoint(output, 1, size=500_000)
    up.put(output / "phase_1" / "config.yaml", b"TRAIN: {}\n")
    up.finish(output)
    variables = {"HF_HOME": str(tmp_path / "hf")}
    up.environ(hub, output)  # writes the token
    if trouble == "full":
        state = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_bsize))
        variables["TMPDIR"] = str(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    log = tmp_path / "log"
    with up.uploader_process(hub, output, "--once", variables=variables, log=log, patience_s=3) as running:
        assert running.end() == (3 if trouble == "full" else 0), running.said()
    assert "phase_1/checkpoints/SEQTRACK_ep0001.safetensors" in up.on_hub(hub), running.said()
    if trouble == "full":
        assert "phase_1/config.yaml" not in up.on_hub(hub)
        (disk / "filler").unlink()
        assert up.once(hub, output) == 0
    up.assert_arrived(hub, output)


def test_a_lock_keeps_a_second_uploader_out(hub: Hub, output: Path) -> None:
    with up.uploader(hub, output, patience_s=0.1, poll_s=0.05):
        assert main(["upload", "--once"]) == 2


def test_it_waits_for_training_and_ends_when_the_run_is_complete(hub: Hub, tmp_path: Path) -> None:
    output, fake = tmp_path / "output", up.FakeTime()
    began = fake.now
    fake.after(500, lambda: (up.checkpoint(output, 1), up.finish(output, state="running")))
    fake.after(900, lambda: up.finish(output))
    assert up.watch(hub, output, time=fake) == 0
    assert 900 < fake.now - began < 980
    assert up.status(output)["state"] == "done"
    up.assert_arrived(hub, output, commits_each=None)


def test_a_finished_phase_1_does_not_end_it_while_phase_2_is_starting(hub: Hub, output: Path) -> None:
    up.finish(output)
    fake, began = up.FakeTime(), up.FakeTime().now
    fake.after(50, lambda: (up.finish(output, phase=2, state="running"), up.checkpoint(output, 4, phase=2)))
    fake.after(300, lambda: up.finish(output, phase=2))
    fake.after(350, lambda: up.put(output / "comparison" / "certificate.json", b"{}"))
    assert up.watch(hub, output, time=fake) == 0
    assert fake.now - began > 350
    up.assert_arrived(hub, output, commits_each=None)


def test_run_folders_on_other_disks_are_uploaded_by_their_links(hub: Hub, output: Path, tmp_path: Path) -> None:
    expected = up.files_of(output)
    (output / "phase_1" / "checkpoints").rename(tmp_path / "second disk")
    (output / "phase_1" / "checkpoints").symlink_to(tmp_path / "second disk")
    (output / "phase_1").rename(tmp_path / "first disk")
    (output / "phase_1").symlink_to(tmp_path / "first disk")
    (output / "loop").symlink_to(output)
    assert up.once(hub, output) == 0
    assert up.on_hub(hub) == expected


def test_a_file_system_without_locks_and_with_another_inode_at_each_look(
    hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    stat, number = Path.stat, itertools.count()

    def changing(path: Path, **options: bool) -> os.stat_result:
        found = stat(path, **options)
        names = [name for name in dir(found) if name.startswith("st_")]
        return cast(
            "os.stat_result", SimpleNamespace(**{n: getattr(found, n) for n in names} | {"st_ino": next(number)})
        )

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(Path, "stat", changing)
    assert up.once(hub, output) == 0
    up.assert_arrived(hub, output)
