"""What every target must do, whichever it is: one suite, run against a folder and against the Hub's protocol.

Each order goes through the same child process as in the sidecar.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uploads.harness import REPO, TOKEN, content
from uploads.hub_server import Hub

from seqtrack.uploads.client import run_child
from seqtrack.uploads.target import Call, Order, Reply, Staged, TargetSettings, UploadSettings, missing, stage

Perform = Callable[..., Reply]


@pytest.fixture(params=["folder", "folder/runs/first/", "huggingface"])
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
    kind, _, prefix = request.param.partition("/")
    place = {"folder": str(tmp_path / "backup"), "huggingface": REPO}[kind]
    target = TargetSettings(kind=kind, place=place, prefix=prefix, endpoint=hub.endpoint)

    def carry_out(**values: object) -> Reply:
        order, settings = Order(message="test", **values), UploadSettings(read_timeout_s=10, request_tries=1)  # type: ignore[arg-type]
        call = Call(target=target, settings=settings, order=order, parent=os.getpid())
        return run_child(call, 30, lambda: False)

    try:
        assert carry_out(prepare="make").fault is None
        yield carry_out
    finally:
        hub.stop()
    assert hub.violations == []


@pytest.fixture
def files(tmp_path: Path) -> tuple[Staged, ...]:
    """A large file, a small one with an awkward name, and an empty one."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(content(300_000, "a"))
    (folder / "b").write_text("text " * 100)
    (folder / "c").write_bytes(b"")
    return (
        stage("phase_1/checkpoints/SEQTRACK_ep0001.safetensors", folder / "a.safetensors"),
        stage("phase_1/logs/größer als sonst.log", folder / "b"),
        stage("phase_1/empty.txt", folder / "c"),
    )


def test_what_was_put_is_listed_with_its_own_digest_not_put_again_and_fetched(
    perform: Perform, files: tuple[Staged, ...], tmp_path: Path
) -> None:
    paths = [item.path for item in files]
    first, second = perform(files=files), perform(files=files)
    assert (first.fault, first.verified, bool(first.commit)) == (None, paths, True)
    assert (second.fault, second.verified, second.commit) == (None, paths, None)
    found = perform(look=[*paths, "phase_1/never.txt"]).remotes or {}
    assert set(found) == set(paths)
    assert missing(files, found) == []
    others = [item.model_copy(update={"sha256": "0" * 64, "git_sha1": "0" * 40}) for item in files]
    assert missing(others, found) == others
    everything = perform(look="all")
    assert set(paths) <= (everything.remotes or {}).keys()
    for item in files:
        reply = perform(fetch=[item.path], revision=everything.revision, folder=str(tmp_path / "state"))
        assert hashlib.sha256(Path(reply.places[item.path]).read_bytes()).hexdigest() == item.sha256


def test_an_order_of_many_files_reaches_the_process_whole(perform: Perform) -> None:
    """It is larger than a pipe, and comes before the process reads."""
    reply = perform(look=[f"phase_1/evaluation/boxes/epoch_1/{number:080}.txt" for number in range(1500)])
    assert (reply.fault, reply.remotes) == (None, {})


def test_a_file_that_changed_after_it_was_hashed_makes_nothing_visible(
    perform: Perform, files: tuple[Staged, ...]
) -> None:
    with Path(files[1].source).open("r+b") as file:
        file.write(b"TEXT")  # as many bytes as before: only their digest can tell
    fault = perform(files=files).fault
    assert fault is not None and fault.kind == "changed"
    assert perform(look=[item.path for item in files]).remotes == {}


def test_a_name_that_leaves_the_place_is_refused(perform: Perform, files: tuple[Staged, ...], tmp_path: Path) -> None:
    for name in ("../outside", "/etc/outside", "phase_1/../../outside"):
        assert perform(files=[files[0].model_copy(update={"path": name})]).fault is not None
        assert perform(fetch=[name], folder=str(tmp_path / "state")).fault is not None
        assert not (tmp_path / "outside").exists()
