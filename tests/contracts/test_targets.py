"""What every target must do, whichever it is: one suite, run against a folder and against the Hub's protocol.

Each order goes through the same child process as in the sidecar.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from uploads.harness import REPO, TOKEN, content
from uploads.hub_server import Hub

from seqtrack.uploads.client import ChildRunner, Outcome
from seqtrack.uploads.target import Remote, Staged, digest_of, git_digest, stamp_of

Perform = Callable[..., Outcome]


def staged(place: Path, path: str) -> dict[str, Any]:
    """A file as staging would hand it over."""
    stamp = stamp_of(place)
    return asdict(Staged(path, str(place), stamp[0], digest_of(place), git_digest(place, stamp[0]), stamp))


@pytest.fixture(params=["folder", "huggingface"])
def perform(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Perform]:
    """Carries out one order on a target that was prepared."""
    hub = Hub().start()
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    state = tmp_path / "state"
    state.mkdir()
    limits = {"connect_s": 5.0, "read_s": 10.0, "tries": 1}
    place = {"folder": str(tmp_path / "backup"), "huggingface": REPO}[request.param]
    target = {"kind": request.param, "place": place, "endpoint": hub.endpoint, "private": True, **limits}

    def order(operation: str, *, events: list[dict[str, Any]] | None = None, **values: Any) -> Outcome:
        heard: list[dict[str, Any]] = [] if events is None else events
        values = {"operation": operation, "target": target, "tries": 1, "nice": 0, "message": "test", **values}
        return ChildRunner(state).run(values, deadline_s=30, on_event=heard.append, tick=lambda: False)

    assert order("push", prepare="make").fault is None
    yield order
    assert hub.violations == []
    hub.stop()


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, Any]]:
    """A large file, a small one with an awkward name, and an empty one."""
    folder = tmp_path / "private"
    folder.mkdir()
    names = {"a.safetensors": 300_000, "b": 1_000, "c": 0}
    for name, size in names.items():
        (folder / name).write_bytes(content(size, name))
    text = folder / "b"
    text.write_text("text " * 100)
    return [
        staged(folder / "a.safetensors", "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"),
        staged(text, "phase_1/logs/größer als sonst.log"),
        staged(folder / "c", "phase_1/empty.txt"),
    ]


def listed(outcome: Outcome) -> dict[str, Remote]:
    assert outcome.done is not None, outcome.fault
    return {item["path"]: Remote(**item) for item in outcome.done["remotes"]}


def test_what_was_put_is_listed_fetched_and_not_put_again(
    perform: Perform, files: list[dict[str, Any]], tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    assert perform("push", files=files, events=events).fault is None
    paths = [item["path"] for item in files]
    assert [event["paths"] for event in events if event["event"] == "verified"] == [paths]
    remotes = listed(perform("look", paths=[*paths, "phase_1/never.txt"]))
    assert set(remotes) == set(paths)
    everything = perform("list")
    assert set(paths) <= set(listed(everything))
    for item in files:
        assert remotes[item["path"]].holds(item["size"], item["sha256"], item["git_sha1"])
        assert not remotes[item["path"]].holds(item["size"], "0" * 64, "0" * 40)
        revision = everything.done["revision"]
        outcome = perform("fetch", path=item["path"], revision=revision, folder=str(tmp_path / "state"))
        assert outcome.done is not None, outcome.fault
        assert hashlib.sha256(Path(outcome.done["place"]).read_bytes()).hexdigest() == item["sha256"]
    events.clear()
    assert perform("push", files=files, events=events).fault is None
    assert [event["event"] for event in events] == ["already", "verified"]


def test_a_file_that_changed_after_it_was_hashed_makes_nothing_visible(
    perform: Perform, files: list[dict[str, Any]]
) -> None:
    with Path(files[1]["source"]).open("r+b") as file:
        file.write(b"TEXT")  # as many bytes as before: only their digest can tell
    outcome = perform("push", files=files)
    assert outcome.fault is not None
    assert outcome.fault.kind == "changed"
    assert listed(perform("look", paths=[item["path"] for item in files])) == {}


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "phase_1/../../outside"])
def test_a_name_that_leaves_the_place_is_refused(
    perform: Perform, files: list[dict[str, Any]], name: str, tmp_path: Path
) -> None:
    assert perform("push", files=[{**files[0], "path": name}]).fault is not None
    assert perform("fetch", path=name, revision=None, folder=str(tmp_path / "state")).fault is not None
    assert not (tmp_path / "outside").exists()
