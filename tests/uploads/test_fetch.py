"""Downloads: what comes back is what was sent, and what is not is refused without touching existing files."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uploads.harness import LFS, REAL, REPO, checkpoint, environ, files_of, finish, once, put, run_inline
from uploads.hub_server import Entry, Hub, git_sha1, make_entry

from seqtrack.cli import main
from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError
from seqtrack.uploads.fetch import fetch_checkpoint, fetch_files, fetch_run
from seqtrack.uploads.target import Call, Order, Reply, Stamp, stamp_of

CHECKPOINT = "phase_1/checkpoints/SEQTRACK_ep0002.safetensors"
MANIFEST = "phase_1/checkpoints/SEQTRACK_ep0002.json"

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def uploaded(hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """A repo with two checkpoints, and the environment of a machine that has none."""
    assert once(hub, output) == 0
    for name, value in environ(hub, output, backoff_s=0.05).items():
        monkeypatch.setenv(name, value)
    return read_environment(os.environ)


def plant(hub: Hub, path: str, data: bytes) -> None:
    """Put bytes into the repo as somebody with a write token could."""
    digest = hashlib.sha256(data).hexdigest()
    lfs = path.endswith(".safetensors")
    (hub.folder / digest).write_bytes(data)
    with hub.lock:
        hub.add_commit(REPO, {path: Entry(len(data), digest, git_sha1(data), lfs=True) if lfs else make_entry(data)})


def plant_checkpoint(hub: Hub, output: Path, data: bytes) -> None:
    """Another checkpoint, with a manifest that fits it."""
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    plant(hub, CHECKPOINT, data)
    plant(hub, MANIFEST, json.dumps(json.loads((output / MANIFEST).read_bytes()) | facts).encode())


def refusal(environment: Environment, epoch: int, folder: Path) -> UserError:
    """The error of a download that must be refused and leave nothing."""
    with pytest.raises(UserError) as refused:
        fetch_checkpoint(environment, epoch, folder)
    assert not folder.exists() or list(folder.iterdir()) == []
    return refused.value


def test_a_checkpoint_comes_back_with_its_manifest_at_one_revision(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    place = fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert place == tmp_path / "new" / "SEQTRACK_ep0002.safetensors"
    assert files_of(tmp_path / "new") == {
        name.rsplit("/", 1)[1]: digest for name, digest in files_of(output).items() if "ep0002" in name
    }
    downloads = [call["path"] for call in hub.calls if call["stage"] == "resolve"]
    commit = hub.repos[REPO].commits[-1][0]
    assert downloads and all(f"/resolve/{commit}/" in path for path in downloads)
    assert fetch_checkpoint(uploaded, 2, tmp_path / "new") == place, "a second time finds it there"


def test_many_files_take_two_processes_and_those_that_are_here_are_not_fetched(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []

    def run(call: Call, *rest: Any) -> Reply:
        orders.append(call.order)
        return run_inline(call, *rest)

    finish(output)
    assert once(hub, output) == 0
    monkeypatch.setattr("seqtrack.uploads.client.run_child", run)
    folder, expected = fetch_run(uploaded, 1, tmp_path / "new"), files_of(output)
    records = {name for name in expected if not name.endswith((".safetensors", ".png"))}
    assert files_of(folder.parent) == {name: expected[name] for name in records}
    paths = [CHECKPOINT, MANIFEST]
    assert fetch_files(uploaded, paths, tmp_path / "new") == [tmp_path / "new" / path for path in paths]
    assert [len(order.fetch) for order in orders] == [0, len(records), 0, 1]
    (tmp_path / "new" / MANIFEST).write_text("mine")
    with pytest.raises(UserError) as refused:
        fetch_files(uploaded, paths, tmp_path / "new")
    assert (refused.value.code, (tmp_path / "new" / MANIFEST).read_text()) == ("fetch.exists", "mine")


def test_an_epoch_that_does_not_exist_names_those_that_do(uploaded: Environment, tmp_path: Path) -> None:
    error = refusal(uploaded, 7, tmp_path / "new")
    assert error.code == "fetch.no_such_epoch"
    assert "phase_1: 1, 2" in str(error)


def damage(hub: Hub, corrupt: str) -> None:
    hub.fail("storage-get", corrupt=corrupt, times=None)
    hub.fail("xorb-get", corrupt="bytes", times=None)


FAULTS: dict[str, Callable[[Hub], object]] = {
    "other bytes": lambda hub: damage(hub, "bytes"),
    "fewer bytes": lambda hub: damage(hub, "size"),
    "manifest": lambda hub: hub.fail("resolve", corrupt="bytes", match=MANIFEST, times=None),
    "refused": lambda hub: hub.fail("resolve", status=403, message="not for your eyes", times=None),
    "not a Hub": lambda hub: hub.fail("resolve", status=200, times=None),
    "dead": lambda hub: hub.stop(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_an_error_and_leaves_nothing(
    hub: Hub, uploaded: Environment, tmp_path: Path, fault: str
) -> None:
    FAULTS[fault](hub)
    codes = {"other bytes": "fetch.corrupt", "manifest": "fetch.corrupt", "refused": "upload.account"}
    assert refusal(uploaded, 2, tmp_path / "new").code == codes.get(fault, "upload.network")


@LFS
@pytest.mark.parametrize("stage", ["info", "paths-info", "resolve", "storage-get"])
def test_a_download_that_hangs_or_fails_is_tried_again(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("UPLOAD_TUNING", json.dumps({**REAL, "read_timeout_s": 0.5, "backoff_s": 0.05}))
    faults = [hub.fail(stage, hang_s=600), hub.fail(stage, status=503), hub.fail(stage, reset="before")]
    place = fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert [fault.times for fault in faults] == [0, 0, 0]
    assert place.read_bytes() == (output / CHECKPOINT).read_bytes()


def test_a_pickle_in_place_of_a_checkpoint_is_refused_unopened(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it ran",)

    plant_checkpoint(hub, output, pickle.dumps(Harm()))
    assert "pickle" in str(refusal(uploaded, 2, tmp_path / "new"))
    assert not (tmp_path / "it ran").exists()


def test_a_header_with_a_key_twice_is_refused_as_by_the_run(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    good = (output / CHECKPOINT).read_bytes()
    length = int.from_bytes(good[:8], "little")
    head = good[8 : 8 + length].rstrip()[:-1] + b',"__metadata__":{"state":"{}"}}'
    plant_checkpoint(hub, output, len(head).to_bytes(8, "little") + head + good[8 + length :])
    assert refusal(uploaded, 2, tmp_path / "new").code == "checkpoint.head"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("file", "../../outside.safetensors", "checkpoint.manifest"),
        ("file", "SEQTRACK_ep0001.safetensors", "checkpoint.manifest"),
        ("epoch", 1, "fetch.manifest"),
        ("sha256", "0" * 64, "fetch.manifest"),
        ("bytes", 1, "fetch.manifest"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path, key: str, value: object, code: str
) -> None:
    plant(hub, MANIFEST, json.dumps(json.loads((output / MANIFEST).read_bytes()) | {key: value}).encode())
    assert refusal(uploaded, 2, tmp_path / "new").code == code
    assert not (tmp_path / "outside.safetensors").exists()


def test_another_file_of_that_name_is_never_replaced(uploaded: Environment, tmp_path: Path) -> None:
    mine = put(tmp_path / "new" / "SEQTRACK_ep0002.safetensors", b"mine")
    with pytest.raises(UserError) as refused:
        fetch_checkpoint(uploaded, 2, tmp_path / "new")
    assert refused.value.code == "fetch.exists"
    assert mine.read_bytes() == b"mine"
    assert list((tmp_path / "new").iterdir()) == [mine]


def test_phase_2_is_preferred_to_phase_1_when_it_is_its_own(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    mine, _ = checkpoint(output, 2, phase=2)
    assert once(hub, output) == 0
    phase_2 = uploaded.model_copy(update={"phase": 2})
    assert fetch_checkpoint(phase_2, 2, tmp_path / "two").read_bytes() == mine.read_bytes()
    of_one = fetch_checkpoint(phase_2, 1, tmp_path / "one")
    assert of_one.read_bytes() == (output / "phase_1" / "checkpoints" / of_one.name).read_bytes()


def test_a_run_that_went_on_is_fetched_as_it_is_now(
    hub: Hub, uploaded: Environment, output: Path, tmp_path: Path
) -> None:
    run, root = finish(output), tmp_path / "fetched"
    metrics, checkpoints = output / "phase_1" / "logs" / "metrics.jsonl", root / "phase_1" / "checkpoints"
    assert once(hub, output) == 0
    assert fetch_run(uploaded, 1, root) == root / "phase_1"
    fetch_files(uploaded, [CHECKPOINT], root)
    metrics.write_bytes(metrics.read_bytes() * 2)
    put(run, run.read_bytes().replace(b"complete", b"stopped"))
    checkpoint(output, 3)
    assert once(hub, output) == 0
    fetch_run(uploaded, 1, root)
    for path in (metrics, run, checkpoints / "SEQTRACK_ep0003.json", checkpoints / "SEQTRACK_ep0002.safetensors"):
        name = path.relative_to(root if root in path.parents else output)
        assert (root / name).read_bytes() == (output / name).read_bytes()
    plant_checkpoint(hub, output, b"another one")
    fetch_run(uploaded, 1, root)
    assert json.loads((root / MANIFEST).read_bytes())["bytes"] == 11
    assert not (root / CHECKPOINT).exists(), "it would be taken for the one of the new manifest"


def test_an_epoch_without_a_file_is_uploaded_by_its_manifest_and_later_with_its_file(hub: Hub, output: Path) -> None:
    path, manifest = checkpoint(output, 3, kind="thin")
    damaged = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0004.json"
    damaged.write_bytes(b"{}")
    assert once(hub, output) == 3 and str(damaged.relative_to(output)) not in hub.tree(REPO)
    damaged.unlink()
    names = [str(one.relative_to(output)) for one in (path, manifest)]
    assert [name in hub.tree(REPO) for name in names] == [False, True]
    checkpoint(output, 3)
    assert once(hub, output) == 0
    assert hub.tree(REPO)[names[1]].data == manifest.read_bytes()
    assert names[0] in hub.tree(REPO)


def test_without_a_target_it_is_an_error(tmp_path: Path) -> None:
    assert refusal(Environment(), 3, tmp_path / "new").code == "upload.no_target"


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "phase_1/../../outside.txt", "a\\..\\b", ""])
def test_a_name_that_leaves_the_folder_is_refused(uploaded: Environment, output: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        fetch_files(uploaded, [name], output)
    assert refused.value.code == "upload.unsafe_path"
    assert not (output.parent / "outside.txt").exists()


def test_the_helper_commands(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, **variables: str) -> int:
        with monkeypatch.context() as patched:
            for name, value in environ(hub, output, variables=variables, backoff_s=0.05).items():
                patched.setenv(name, value)
            return main(["hub", *arguments])

    assert run("check") == 2, "a check creates no repo"
    assert REPO not in hub.repos
    assert run("create") == 0
    assert run("check") == 1, "the target is empty"
    assert run("upload", str(output / "phase_1" / "config.yaml")) == 0
    assert hub.tree(REPO)["phase_1/config.yaml"].data == (output / "phase_1" / "config.yaml").read_bytes()
    assert once(hub, output) == 0
    assert run("check") == 0
    reader = put(tmp_path / "reader", b"hf_readreadreadreadread")
    capsys.readouterr()
    assert run("check", HF_TOKEN_PATH=str(reader)) == 2
    assert "upload.account" in capsys.readouterr().err
    assert run("create", HF_REPO="") == 2
    assert "upload.no_target" in capsys.readouterr().err
    for arguments in (["--epoch", "2"], ["phase_1/config.yaml"]):
        assert run("download", *arguments, OUTPUT_DIR=str(tmp_path / "elsewhere")) == 0
    for path in (CHECKPOINT, "phase_1/config.yaml"):
        assert (tmp_path / "elsewhere" / path).read_bytes() == (output / path).read_bytes()


@pytest.mark.parametrize("trouble", ["damaged", "grows", "vanishes"])
def test_a_check_finds_what_cannot_be_compared(
    uploaded: Environment, output: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    assert main(["hub", "check"]) == 0
    log = output / "phase_1" / "logs" / "metrics.jsonl"
    if trouble == "damaged":
        put(output / MANIFEST, b"{ not json")
    else:
        during_stage(
            monkeypatch, lambda: log.write_bytes(b"more") if trouble == "grows" else log.unlink(missing_ok=True)
        )
    assert main(["hub", "check"]) == 1


def during_stage(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Another process changes a file after its first stamp was taken."""

    def stamp(path: Path) -> Stamp:
        found = stamp_of(path)
        change()
        return found

    monkeypatch.setattr("seqtrack.uploads.target.stamp_of", stamp)


@pytest.mark.parametrize("trouble", ["grows", "vanishes"])
def test_a_file_that_changes_while_it_is_read_is_a_users_error(
    hub: Hub,
    uploaded: Environment,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    log, before = output / "phase_1" / "logs" / "metrics.jsonl", len(hub.repos[REPO].commits)
    during_stage(monkeypatch, lambda: log.write_bytes(b"more") if trouble == "grows" else log.unlink(missing_ok=True))
    assert main(["hub", "upload", str(log)]) == 2
    code = {"grows": "[upload.changed]", "vanishes": "[file.unreadable]"}[trouble]
    assert (code in capsys.readouterr().err, len(hub.repos[REPO].commits)) == (True, before)


@pytest.mark.parametrize("command", [["upload", "--once"], ["hub", "check"]])
def test_an_output_folder_that_does_not_exist_is_a_users_error(
    uploaded: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    for name in ("none", "token"):  # the second is a file
        monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / name))
        assert main(command) == 2
        assert "[upload.no_output]" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("target", ["datasets", "folder"])
def test_other_targets_take_files_and_give_them_back(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    folder = {"UPLOAD_TARGET": f"folder:{tmp_path / 'backup'}", "HF_PREFIX": "runs/first"}
    variables = {"HF_REPO": "datasets/me/run"} if target == "datasets" else folder
    assert once(hub, output, variables=variables) == 0
    if target == "datasets":
        assert hub.repos.keys() == {"datasets/me/run"}
    else:
        assert files_of(tmp_path / "backup" / "runs" / "first") == files_of(output)
    for name, value in environ(hub, output, variables=variables).items():
        monkeypatch.setenv(name, value)
    place = fetch_checkpoint(read_environment(os.environ), 2, tmp_path / "new")
    assert place.read_bytes() == (output / CHECKPOINT).read_bytes()
