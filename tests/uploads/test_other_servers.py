"""Servers that speak the same protocol in other words get every file, once, and give it back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from uploads.harness import REPO, assert_arrived, checkpoint, environ, once, put, status
from uploads.other_server import WAYS, OtherHub

from seqtrack.config.environment import read_environment
from seqtrack.uploads.fetch import fetch_checkpoint, latest_epoch


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[OtherHub]:
    server = OtherHub({request.param}, multipart_bytes=15_000, page=3)
    server.start()
    yield server
    server.stop()
    server.discard()


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("other", sorted(set(WAYS) - {"stubborn"}), indirect=True)
def test_every_way_to_speak_the_protocol_is_understood(
    other: OtherHub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(output / "phase_1" / "twin.png", (output / "phase_1" / "plots" / "phase_1_loss.png").read_bytes())
    for epoch in range(3, 7) if "inline" in other.ways else ():
        checkpoint(output, epoch, size=9_000_000)
    assert once(other, output) == 0
    assert_arrived(other, output)
    assert None not in other.parents[1 if "empty" in other.ways else 0 :], "a commit names the head it was made on"
    commits = len(other.repos[REPO].commits)
    assert commits == 1 + ("empty" not in other.ways) + ("inline" in other.ways), "32 MB in one, at most"
    (output / ".uploads" / "status.json").unlink()
    assert once(other, output) == 0
    assert len(other.repos[REPO].commits) == commits, "nothing is sent a second time"
    for name, value in environ(other, output).items():
        monkeypatch.setenv(name, value)
    here = read_environment(os.environ)
    assert latest_epoch(here) == (6 if "inline" in other.ways else 2)
    place = fetch_checkpoint(here, 2, tmp_path / "new")
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()


@pytest.mark.parametrize("other", ["stubborn"], indirect=True)
def test_a_file_that_the_server_will_have_ignored_is_named_and_makes_no_empty_commit(
    other: OtherHub, output: Path
) -> None:
    assert once(other, output) == 3
    assert ".gitignore" in status(output)["problems"]["phase_1/logs/metrics.jsonl"]
    assert len(other.repos[REPO].commits) == 2, "the repo's own first commit, and ours"
    (output / "phase_1" / "logs" / "metrics.jsonl").unlink()
    assert_arrived(other, output)
