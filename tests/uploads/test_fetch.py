"""Pulls: what comes back is what was sent, and what is not is refused without touching what is there."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from uploads.harness import REPO, checkpoint, environ, files_of, once, put
from uploads.hub_server import Entry, Hub, git_sha1, make_entry

from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError
from seqtrack.uploads.fetch import fetch_checkpoint

CONTAINER = "phase_1/checkpoints/SEQTRACK_ep0002.safetensors"
MANIFEST = "phase_1/checkpoints/SEQTRACK_ep0002.json"


@pytest.fixture
def uploaded(hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """A repo with two checkpoints, and the environment of a machine that has none."""
    env = environ(hub, output)
    assert once(env) == 0
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return read_environment(os.environ)


def planted(hub: Hub, path: str, data: bytes, *, lfs: bool) -> None:
    """Put bytes into the repo as somebody with a write token could."""
    digest = hashlib.sha256(data).hexdigest()
    entry = Entry(len(data), digest, git_sha1(data), lfs=True) if lfs else make_entry(data)
    (hub.folder / digest).write_bytes(data)
    with hub.lock:
        hub.add_commit(REPO, {path: entry}, ())


def is_clean(folder: Path) -> bool:
    return not folder.exists() or list(folder.iterdir()) == []


def test_a_checkpoint_comes_back_with_its_manifest(uploaded: Environment, output: Path, tmp_path: Path) -> None:
    place = fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert place == tmp_path / "new" / "SEQTRACK_ep0002.safetensors"
    assert files_of(tmp_path / "new") == {
        name.rsplit("/", 1)[1]: digest for name, digest in files_of(output).items() if "ep0002" in name
    }
    assert fetch_checkpoint(uploaded, 2, tmp_path / "new") == place, "a second time finds it there"


def test_the_revision_is_one_for_all_files(hub: Hub, uploaded: Environment, output: Path, tmp_path: Path) -> None:
    fetch_checkpoint(uploaded, 2, tmp_path / "new")
    pulls = [call["path"] for call in hub.calls if call["stage"] == "resolve"]
    commit = hub.repos[REPO].commits[-1][0]
    assert pulls
    assert all(f"/resolve/{commit}/" in path for path in pulls)


def test_an_epoch_that_is_not_there_names_those_that_are(uploaded: Environment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of epoch 7; there are phase_1: 1, 2"):
        fetch_checkpoint(uploaded, 7, tmp_path / "new")


@pytest.mark.parametrize("corrupt", ["bytes", "size"])
def test_a_body_with_other_bytes_is_refused(hub: Hub, uploaded: Environment, tmp_path: Path, corrupt: str) -> None:
    hub.fail("storage-get", corrupt=corrupt, times=None)
    with pytest.raises(UserError):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert is_clean(tmp_path / "new")


def test_a_manifest_with_other_bytes_than_listed_is_refused(hub: Hub, uploaded: Environment, tmp_path: Path) -> None:
    hub.fail("resolve", corrupt="bytes", match=MANIFEST, times=None)
    with pytest.raises(UserError, match="It is refused"):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert is_clean(tmp_path / "new")


@pytest.mark.parametrize("stage", ["info", "paths-info", "resolve", "storage-get"])
def test_a_pull_that_hangs_is_given_up_and_tried_again(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("UPLOAD_READ_TIMEOUT_S", "1")
    monkeypatch.setenv("UPLOAD_DEADLINE_S", "300")
    fault = hub.fail(stage, hang_s=300)
    place = fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert fault.times == 0
    assert place.read_bytes() == (output / CONTAINER).read_bytes()


def test_a_listing_that_hangs_is_given_up(
    hub: Hub, uploaded: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPLOAD_READ_TIMEOUT_S", "1")
    monkeypatch.setenv("UPLOAD_DEADLINE_S", "300")
    hub.fail("tree", hang_s=300)
    with pytest.raises(UserError, match="there are phase_1: 1, 2"):
        fetch_checkpoint(uploaded, 7, tmp_path / "new")


def test_a_pickle_in_place_of_a_checkpoint_is_refused_unopened(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it ran",)

    data = pickle.dumps(Harm())
    digest = hashlib.sha256(data).hexdigest()
    values = json.loads((output / MANIFEST).read_bytes()) | {"bytes": len(data), "sha256": digest}
    planted(hub, CONTAINER, data, lfs=True)
    planted(hub, MANIFEST, json.dumps(values).encode(), lfs=False)
    with pytest.raises(UserError, match="pickle"):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert is_clean(tmp_path / "new")
    assert not (tmp_path / "it ran").exists()


def test_a_head_with_a_key_twice_is_refused_here_as_by_the_run(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    good = (output / CONTAINER).read_bytes()
    length = int.from_bytes(good[:8], "little")
    head = good[8 : 8 + length].rstrip()[:-1] + b',"__metadata__":{"state":"{}"}}'
    data = len(head).to_bytes(8, "little") + head + good[8 + length :]
    digest = hashlib.sha256(data).hexdigest()
    values = json.loads((output / MANIFEST).read_bytes()) | {"bytes": len(data), "sha256": digest}
    planted(hub, CONTAINER, data, lfs=True)
    planted(hub, MANIFEST, json.dumps(values).encode(), lfs=False)
    with pytest.raises(UserError) as refused:
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert refused.value.code == "checkpoint.head"
    assert is_clean(tmp_path / "new")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../../outside.safetensors"),
        ("file", "/tmp/outside.safetensors"),
        ("file", "SEQTRACK_ep0001.safetensors"),
        ("epoch", 1),
        ("sha256", "0" * 64),
        ("bytes", 1),
    ],
)
def test_a_manifest_that_speaks_of_something_else_is_refused(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path, key: str, value: object
) -> None:
    values = json.loads((output / MANIFEST).read_bytes()) | {key: value}
    planted(hub, MANIFEST, json.dumps(values).encode(), lfs=False)
    with pytest.raises(UserError, match="refused"):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert is_clean(tmp_path / "new")
    assert not (tmp_path / "outside.safetensors").exists()


def test_another_file_of_that_name_is_never_replaced(uploaded: Environment, tmp_path: Path) -> None:
    mine = put(tmp_path / "new" / "SEQTRACK_ep0002.safetensors", b"mine")
    with pytest.raises(UserError, match="differs from the one fetched"):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert mine.read_bytes() == b"mine"
    assert list((tmp_path / "new").iterdir()) == [mine]


def test_a_short_failure_passes_and_a_dead_server_is_an_error(hub: Hub, uploaded: Environment, tmp_path: Path) -> None:
    hub.fail("paths-info", status=503)
    hub.fail("resolve", reset="before")
    assert fetch_checkpoint(uploaded, 2, tmp_path / "new").exists()
    hub.stop()
    with pytest.raises(UserError, match="me/run"):
        fetch_checkpoint(uploaded, 1, tmp_path / "other")
    assert is_clean(tmp_path / "other")


def test_a_refusal_is_not_taken_for_a_file_that_is_not_there(hub: Hub, uploaded: Environment, tmp_path: Path) -> None:
    hub.fail("resolve", status=403, message="not for your eyes", times=None)
    with pytest.raises(UserError, match="not for your eyes"):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    hub.clear()
    hub.fail("resolve", status=200, times=None)  # a page of somebody else's, without the Hub's headers
    with pytest.raises(UserError, match="not a Hub's"):
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert is_clean(tmp_path / "new")


def test_without_a_target_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="HF_REPO"):
        fetch_checkpoint(Environment(), 3, tmp_path)


def run(env: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "seqtrack", "hub", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "phase_1/../../outside.txt", "a\\..\\b", ""])
def test_the_hand_tool_refuses_a_name_that_leaves_the_folder(
    hub: Hub, uploaded: Environment, output: Path, name: str
) -> None:
    done = run(environ(hub, output), "download", name)
    assert done.returncode == 2
    assert "refused" in done.stderr
    assert not (output.parent / "outside.txt").exists()


def test_the_hand_tools_by_hand(hub: Hub, output: Path, tmp_path: Path) -> None:
    env = environ(hub, output)
    assert run(env, "check").returncode == 2, "a check makes no repo"
    assert REPO not in hub.repos
    assert "is there" in run(env, "create").stdout
    assert run(env, "check").returncode == 1, "nothing is there yet"
    sent = run(env, "upload", str(output / "phase_1" / "config.yaml"))
    assert sent.returncode == 0, sent.stderr
    assert hub.tree(REPO)["phase_1/config.yaml"].data == (output / "phase_1" / "config.yaml").read_bytes()
    assert once(env) == 0
    assert run(env, "check").returncode == 0
    reader = put(tmp_path / "reader", b"hf_readreadreadreadread")
    refused = run({**env, "HF_TOKEN_PATH": str(reader)}, "check")
    assert (refused.returncode, "write access" in refused.stderr) == (2, True)
    other = environ(hub, tmp_path / "elsewhere", HF_TOKEN_PATH=env["HF_TOKEN_PATH"])
    assert run(other, "download", "--epoch", "1").returncode == 0
    got = tmp_path / "elsewhere" / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.safetensors"
    assert got.read_bytes() == (output / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.safetensors").read_bytes()
    assert run(other, "download", "phase_1/config.yaml").returncode == 0
    assert (tmp_path / "elsewhere" / "phase_1" / "config.yaml").exists()
    refused = run({**env, "HF_REPO": ""}, "create")
    assert (refused.returncode, "HF_REPO is not set" in refused.stderr) == (2, True)


def test_a_checkpoint_comes_back_from_a_folder_too(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPLOAD_TARGET", f"folder:{tmp_path / 'backup'}")
    monkeypatch.setenv("OUTPUT_DIR", str(output))
    monkeypatch.setenv("UPLOAD_SETTLE_S", "0.1")
    command = [sys.executable, "-m", "seqtrack", "upload", "--once"]
    assert subprocess.run(command, env=dict(os.environ), timeout=60).returncode == 0
    assert files_of(tmp_path / "backup") == files_of(output)
    place = fetch_checkpoint(read_environment(os.environ), 1, tmp_path / "new")
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()


def test_phase_2_is_preferred_to_phase_1_when_it_is_its_own(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:

    mine, _ = checkpoint(output, 2, phase=2)
    assert once(environ(hub, output)) == 0
    of_two = fetch_checkpoint(uploaded.model_copy(update={"phase": 2}), 2, tmp_path / "two")
    of_one = fetch_checkpoint(uploaded.model_copy(update={"phase": 2}), 1, tmp_path / "one")
    assert of_two.read_bytes() == mine.read_bytes()
    assert of_one.read_bytes() == (output / "phase_1" / "checkpoints" / of_one.name).read_bytes()
