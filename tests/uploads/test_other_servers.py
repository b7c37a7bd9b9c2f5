"""Servers that speak the same protocol in other words get every file, once, and give it back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from uploads.other_server import WAYS, OtherHub
from uploads.rig import REPO, assert_arrived, environ, once, put

from seqtrack.config.environment import read_environment
from seqtrack.uploads.fetch import fetch_checkpoint, newest_epoch


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[OtherHub]:
    server = OtherHub(request.param, multipart_bytes=15_000, page=3)
    server.start()
    yield server
    server.stop()


EACH = [*({way} for way in WAYS), {"closing", "packed", "lower", "chatty", "created", "moved", "once", "plain"}]


@pytest.mark.parametrize("other", EACH, indirect=True, ids=lambda ways: "+".join(sorted(ways)))
def test_every_way_to_speak_the_protocol_is_understood(
    other: OtherHub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(output / "phase_1" / "twin.png", (output / "phase_1" / "plots" / "phase_1_loss.png").read_bytes())
    env = environ(other, output)
    assert once(env) == 0
    assert_arrived(other, output)
    assert set(other.puts.values()) <= {1}, "an object that two files share is sent once"
    commits = len(other.repos[REPO].commits)
    for path in (output / ".uploads").glob("journal*"):
        path.unlink()
    assert once(env) == 0
    assert len(other.repos[REPO].commits) == commits, "nothing is sent a second time"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    here = read_environment(os.environ)
    assert newest_epoch(here) == 2
    place = fetch_checkpoint(here, 2, tmp_path / "new")
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()
