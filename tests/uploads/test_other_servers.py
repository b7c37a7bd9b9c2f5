"""Servers that speak the same protocol in other words get every file, once, and give it back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from uploads.harness import REPO, assert_arrived, checkpoint, environ, once, put, status, uploader
from uploads.other_server import WAYS, OtherHub

from seqtrack.config.environment import read_environment
from seqtrack.uploads.fetch import fetch_checkpoint, latest_epoch


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[OtherHub]:
    server = OtherHub(request.param, multipart_bytes=15_000, page=3)
    server.start()
    yield server
    server.stop()
    server.discard()


# Some together, so that all of them take half a minute.
TOGETHER = [
    {"closing", "lower", "created"},
    {"packed", "chatty"},
    {"sparse", "once"},
    {"moved", "bare"},
    {"short", "plain"},
    {"inline"},
    {"empty"},
    {"ignoring"},
]


def test_every_way_is_tried() -> None:
    assert set().union(*TOGETHER) == set(WAYS) - {"stubborn"}


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("other", TOGETHER, indirect=True, ids=lambda ways: "+".join(sorted(ways)))
def test_every_way_to_speak_the_protocol_is_understood(
    other: OtherHub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(output / "phase_1" / "twin.png", (output / "phase_1" / "plots" / "phase_1_loss.png").read_bytes())
    env = environ(other, output)
    assert once(env) == 0
    assert_arrived(other, output)
    assert None not in other.parents[1 if "empty" in other.ways else 0 :], "a commit names the head it was made on"
    assert set(other.puts.values()) <= {1}, "an object that two files share is sent once"
    commits = len(other.repos[REPO].commits)
    (output / ".uploads" / "status.json").unlink()
    assert once(env) == 0
    assert len(other.repos[REPO].commits) == commits, "nothing is sent a second time"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    here = read_environment(os.environ)
    assert latest_epoch(here) == 2
    place = fetch_checkpoint(here, 2, tmp_path / "new")
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()


@pytest.mark.parametrize("other", [{"stubborn"}], indirect=True)
def test_a_file_that_the_server_will_have_ignored_is_named_and_makes_no_empty_commit(
    other: OtherHub, output: Path
) -> None:
    with uploader(environ(other, output, slow_retry_s=600), once=True) as running:
        assert running.wait() == 3
    assert ".gitignore" in status(output)["problems"]["phase_1/logs/metrics.jsonl"]
    assert len(other.repos[REPO].commits) == 2, "the repo's own first commit, and ours"
    (output / "phase_1" / "logs" / "metrics.jsonl").unlink()
    assert_arrived(other, output)


@pytest.mark.parametrize("other", [{"inline"}], indirect=True)
def test_a_checkpoint_that_does_not_fit_into_a_commit_keeps_its_manifest_back(other: OtherHub, output: Path) -> None:
    for epoch in range(3, 7):
        checkpoint(output, epoch, size=9_000_000)
    assert once(environ(other, output)) == 0
    assert len(other.repos[REPO].commits) > 2, "they did not fit into one"
    assert_arrived(other, output)
