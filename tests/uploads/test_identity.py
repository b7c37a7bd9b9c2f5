"""One run owns a place on the target: another is refused before anything is overwritten or trained."""

import json
import os
from pathlib import Path

import pytest
from uploads.harness import (
    BOTH_WAYS,
    REPO,
    checkpoint,
    environ,
    files_of,
    finish,
    on_hub,
    once,
    put,
    status,
    watch,
)
from uploads.hub_server import Hub, make_entry

from seqtrack.cli import main
from seqtrack.config.environment import configure, read_environment
from seqtrack.config.loader import config_digest, dump_config
from seqtrack.errors import UserError
from seqtrack.uploads.fetch import fetch_checkpoint, latest_epoch

MARKER = "phase_1/identity.json"


def run(output: Path, seed: int = 42, **record: object) -> Path:
    """A run in the middle of its second epoch."""
    checkpoint(output, 1)
    _, config = configure({"SEED": str(seed), "CONFIG": "demo"})
    put(output / "phase_1" / "config.yaml", dump_config(config).encode())
    path = finish(output, state="running")
    values = {"started": f"by {output.name}", "config_digest": config_digest(config)}
    put(path, json.dumps(json.loads(path.read_bytes()) | values | record).encode())
    return output


def refused(hub: Hub, output: Path, rule: object = once, **tuning: object) -> UserError:
    before = [oid for oid, *_ in hub.repos[REPO].commits]
    with pytest.raises(UserError) as error:
        rule(hub, output, **tuning)  # type: ignore[operator]
    assert error.value.code == "upload.other_run"
    assert [oid for oid, *_ in hub.repos[REPO].commits] == before, "nothing was overwritten"
    return error.value


@BOTH_WAYS
@pytest.mark.parametrize("rule", [once, watch])
@pytest.mark.parametrize("seed", [7, 42])
def test_another_run_is_refused_and_the_first_goes_on(hub: Hub, tmp_path: Path, rule: object, seed: int) -> None:
    mine = run(tmp_path / "mine")
    assert once(hub, mine) == 0
    marker = json.loads(hub.tree()[MARKER].data or b"")
    assert (marker["seed"], len(marker["config_digest"])) == (42, 64)
    text = str(refused(hub, run(tmp_path / "other", seed), rule))
    assert ('"seed": 7' in text, '"seed": 42' in text) == (seed == 7, True)
    checkpoint(mine, 2)
    assert once(hub, mine) == 0
    assert len(hub.commits_of(MARKER)) == 1


def test_an_extended_run_and_one_without_its_state_file_are_still_the_same(hub: Hub, tmp_path: Path) -> None:
    output = run(tmp_path / "mine")
    assert once(hub, output) == 0
    run(output, epochs=9, config_digest="a" * 64)
    (output / ".uploads" / "status.json").unlink()
    checkpoint(output, 2)
    assert once(hub, output) == 0


def test_two_runs_in_two_folders_of_a_repo(hub: Hub, tmp_path: Path) -> None:
    mine, other = run(tmp_path / "mine"), run(tmp_path / "other", 7)
    for output, prefix in ((mine, "a/first"), (other, "second")):
        assert once(hub, output, variables={"HF_PREFIX": prefix}) == 0
        own = {path.removeprefix(f"{prefix}/") for path in hub.tree() if path.startswith(f"{prefix}/")}
        assert own == files_of(output).keys() | {MARKER}
        assert once(hub, output, variables={"HF_PREFIX": prefix}) == 0
    refused(hub, other, variables={"HF_PREFIX": "a/first"})
    assert not any(path.startswith("phase_1") for path in hub.tree())


def test_a_file_under_a_prefix_that_is_refused_is_named(hub: Hub, output: Path) -> None:
    path = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"
    hub.fail("xorb", status=413, times=None)
    hub.fail("put", status=413, times=None, match=files_of(output)[path])
    assert once(hub, output, variables={"HF_PREFIX": "x"}) == 3
    assert list(status(output)["problems"]) == [path]
    assert "x/phase_1/config.yaml" in on_hub(hub)


def test_a_damaged_marker_and_one_that_comes_between_are_refused(hub: Hub, tmp_path: Path) -> None:
    output = run(tmp_path / "mine")
    hub.create(REPO, private=True)

    def claim() -> None:
        hub.add_commit(REPO, {MARKER: make_entry(b"not a marker")})

    hub.fail("commit", action=claim)
    with pytest.raises(UserError) as error:
        once(hub, output)
    assert error.value.code == "upload.other_run"
    assert on_hub(hub) == {}


@pytest.mark.parametrize(("name", "data"), [("run.json", None), ("run.json", b"{}"), ("config.yaml", b"\0")])
def test_a_run_without_a_marker_of_its_own_overwrites_no_other(
    hub: Hub, tmp_path: Path, name: str, data: bytes | None
) -> None:
    other = run(tmp_path / "other", 7)
    path = other / "phase_1" / name
    path.unlink() if data is None else put(path, data)
    assert once(hub, other) == 0, "nobody's place"
    hub.repos.clear()
    assert once(hub, run(tmp_path / "mine")) == 0
    refused(hub, other)
    put(other / "phase_1" / "notes.txt", b"new")
    refused(hub, other)


def test_the_helper_commands_overwrite_no_other_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = run(tmp_path / "mine"), run(tmp_path / "other", 7)
    assert once(hub, mine) == 0
    before = on_hub(hub)
    stray = put(tmp_path / "config.yaml", b"another")
    for output, arguments in (
        (other, ["upload", str(other / "phase_1" / "config.yaml")]),
        (other, ["upload", str(stray), "--to", "notes/config.yaml"]),
        (other, ["card"]),
        (tmp_path / "none", ["upload", str(stray), "--to", "phase_1/config.yaml"]),
    ):
        for name, value in environ(hub, output).items():
            monkeypatch.setenv(name, value)
        assert main(["hub", *arguments]) == 2
        assert ("[upload.other_run]" in capsys.readouterr().err, on_hub(hub)) == (True, before)


def test_a_machine_that_replaces_a_lost_one_goes_on_with_its_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: None
) -> None:
    assert once(hub, run(tmp_path / "lost")) == 0
    new = tmp_path / "new"
    for name, value in environ(hub, new).items():
        monkeypatch.setenv(name, value)
    fetch_checkpoint(read_environment(os.environ), 1, new / ".fetched" / "checkpoints")
    run(new, resume_epoch=1)
    checkpoint(new, 2)
    assert once(hub, new) == 0
    run(new, resume_epoch=None)
    refused(hub, new)


def with_config(output: Path, seed: int, classes: str) -> None:
    """The last manifest gets the configuration that training writes into it."""
    _, config = configure({"SEED": str(seed), "CLASSES": classes, "CONFIG": "demo"})
    path = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json"
    put(path, json.dumps(json.loads(path.read_bytes()) | {"config": config.model_dump(mode="json")}).encode())


@pytest.mark.parametrize(("variables", "found"), [({}, 1), ({"EPOCHS": "9"}, 1), ({"SEED": "7"}, None)])
def test_the_latest_epoch_is_this_experiments(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inline: None,
    variables: dict[str, str],
    found: int | None,
) -> None:
    output = run(tmp_path / "mine")
    with_config(output, 42, "")
    for name, value in environ(hub, tmp_path / "new").items():
        monkeypatch.setenv(name, value)
    environment, config = configure({**os.environ, "CONFIG": "demo", **variables})
    assert latest_epoch(environment, config) is None, "there is nothing yet"
    assert once(hub, output) == 0
    if found is not None:
        assert latest_epoch(environment, config) == found
        return
    with pytest.raises(UserError) as error:
        latest_epoch(environment, config)
    assert error.value.code == "run.other_experiment"
    assert "TRAIN.SEED: 7 here, 42 there" in str(error.value)
    assert not any(call["path"].endswith(".safetensors") for call in hub.calls if call["stage"] == "resolve")
