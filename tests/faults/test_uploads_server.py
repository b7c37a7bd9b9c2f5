"""What the server can do to an upload: each fault of the protocol, and afterwards every file there, once, complete."""

import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from uploads import harness as up
from uploads.hub_server import COMMIT_LIMIT_TEXT, Hub, make_entry
from uploads.xet_server import XetHub

from seqtrack.commands.upload import health_problems
from seqtrack.uploads.state import read_state
from seqtrack.uploads.target import UploadSettings

FOR_EVER = 600.0
Plan = Callable[[Hub, Path], object]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fail_often(hub: Hub) -> None:
    """A third of all calls."""
    for kind, chance in (({"status": 503}, 0.15), ({"reset": "before"}, 0.12), ({"reset": "after"}, 0.1)):
        hub.fail("any", times=None, chance=chance, **kind)


def trouble_at(stage: str, first_code: int) -> Plan:
    def plan(hub: Hub, output: Path) -> None:
        for code in itertools.islice(itertools.cycle((500, 502, 503, 504)), first_code, first_code + 2):
            hub.fail(stage, status=code)
        hub.fail(stage, reset="before")
        hub.fail(stage, hang_s=FOR_EVER)

    return plan


def trouble_in_parts(stage: str) -> Plan:
    def plan(hub: Hub, output: Path) -> None:
        hub.multipart_bytes = 30_000
        up.checkpoint(output, 3, size=100_000)
        hub.fail(stage, status=500)
        hub.fail(stage, reset="before")

    return plan


def passing_trouble(hub: Hub, output: Path) -> None:
    bad = up.put(output / "phase_1" / "bad.bin", up.content(50_000, "bad"))
    hub.fail("batch", object_error=(digest(bad), 503))
    hub.fail("put", status=403, message="Request has expired")


STORES = {Hub: "put", XetHub: "xorb"}  # the call that takes bytes
STAGES = ("whoami", "create", "info", "paths-info", "preupload", "batch", "put", "commit")
PASSING: dict[str, Plan] = {
    **{f"{stage}: errors, a reset, a hang": trouble_at(stage, number) for number, stage in enumerate(STAGES)},
    # The object is stored by then, and what the commit holds is asked of the listing.
    "no verification": lambda hub, _: hub.fail("verify", status=503, times=None),
    "a put is cut": lambda hub, _: hub.fail("put", reset="middle"),
    "a put's answer is lost": lambda hub, _: hub.fail("put", reset="after"),
    "a commit's answer is lost": lambda hub, _: hub.fail("commit", reset="after"),
    "a restart": lambda hub, _: hub.fail(STORES[type(hub)], action=lambda: (hub.stop(), hub.start(hub.port))),
    "a part of a large file": trouble_in_parts("part"),
    "the end of a large file": trouble_in_parts("complete"),
    "an object or its address": passing_trouble,
    "a repo that exists": lambda hub, _: hub.create(up.REPO, private=True),
    "a repo that exists and may not be created": lambda hub, _: (
        hub.create(up.REPO, private=True),
        hub.fail("create", status=403, message="no right to create in this namespace", times=None),
    ),
}


LFS_ONLY = re.compile("batch|put|part|large file|object|verification")


@pytest.mark.parametrize(
    ("hub", "trouble"),
    [(way, name) for name in PASSING for way in ("lfs", "xet") if way == "lfs" or not LFS_ONLY.search(name)],
    indirect=["hub"],
)
def test_trouble_that_passes_costs_nothing_but_time_and_makes_nothing_twice(
    hub: Hub, output: Path, trouble: str
) -> None:
    PASSING[trouble](hub, output)
    planned = list(hub.faults)
    timeout = 0.5 if trouble.endswith("a hang") else 20.0
    assert up.once(hub, output, read_timeout_s=timeout) == 0
    assert [fault for fault in planned if fault.times] == []
    if trouble != "an object or its address":  # for which a batch is halved
        assert (len(hub.repos[up.REPO].commits), hub.refused_commits) == (2, 0), "the repo's own first commit, and ours"
    up.assert_arrived(hub, output)


@up.BOTH_WAYS
def test_another_address_in_the_servers_answers_does_not_matter(hub: Hub, output: Path) -> None:
    variables = {"HF_ENDPOINT": hub.endpoint}
    hub.public_host = "hub.internal"
    with up.uploader(hub, output, variables=variables) as (at_work, runner):
        assert at_work.run(once=True) == 0
    assert len(runner.called_at) == 1, "nothing failed"
    up.assert_arrived(hub, output)


@up.BOTH_WAYS
def test_a_third_of_all_calls_failing_costs_nothing_but_time(hub: Hub, output: Path) -> None:
    fail_often(hub)
    for number in range(10):
        up.put(output / "phase_1" / "files" / f"{number}.bin", up.content(20_000, number))
    up.finish(output)
    assert up.watch(hub, output, tries_per_file=1000, poll_s=60) == 0
    up.assert_arrived(hub, output)


def test_a_wait_that_is_asked_for_is_kept_and_too_long_for_one_pass(hub: Hub, output: Path) -> None:
    headers = {"RateLimit": '"api";r=949;t=20'}
    fault = hub.fail("commit", status=429, message=COMMIT_LIMIT_TEXT, headers=headers, times=None)
    fake = up.FakeTime()
    began = fake.now
    assert up.once(hub, output, time=fake) == 3
    assert fake.now - began < 60, "it is known at once that the wait is longer than its patience"
    fault.times = 1
    up.finish(output)
    with up.uploader(hub, output, request_tries=3) as (at_work, runner):
        assert at_work.run() == 0
    first, second, *_ = runner.called_at
    assert 900 <= second - first < 920
    up.assert_arrived(hub, output)


@up.BOTH_WAYS
def test_a_commit_that_is_applied_long_after_we_gave_it_up_is_not_made_twice(hub: Hub, output: Path) -> None:
    hub.fail("commit", hang_s=FOR_EVER)
    assert up.once(hub, output, read_timeout_s=0.5) == 0
    hub.clear()  # only now is the first call applied, on a head that is none any longer
    up.until(lambda: hub.refused_commits == 1, what="the late commit's refusal")
    up.assert_arrived(hub, output)


def test_a_second_writer_between_our_reading_and_our_commit(hub: Hub, output: Path) -> None:
    hub.fail("commit", action=lambda: hub.add_commit(up.REPO, {"README.md": make_entry(b"by hand")}))
    assert up.once(hub, output) == 0
    assert hub.refused_commits == 1
    assert hub.tree(up.REPO).pop("README.md").data == b"by hand"
    up.assert_arrived(hub, output)


def test_a_refused_token_is_one_line_of_ill_health_and_its_replacement_is_noticed(
    hub: Hub, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token, fake = Path(up.environ(hub, output)["HF_TOKEN_PATH"]), up.FakeTime()
    token.write_text("hf_mistypedmistypedmistyped")

    def renew() -> None:
        assert up.fault_kind(output) == "account"
        (problem,) = health_problems(read_state(output), UploadSettings(), fake.now)
        assert "HF_TOKEN_PATH" in problem and "\n" not in problem
        token.write_text(up.TOKEN + "\n")

    fake.after(130, renew)
    up.finish(output)
    with caplog.at_level("INFO", "seqtrack"):
        assert up.watch(hub, output, time=fake) == 0
    assert caplog.text.count("HF_TOKEN_PATH") == 1
    assert "hf_mistyped" not in caplog.text + (output / ".uploads" / "status.json").read_text()
    up.assert_arrived(hub, output)


def test_a_token_that_may_only_read_or_was_withdrawn_is_refused(hub: Hub, output: Path) -> None:
    hub.create(up.REPO, private=True)
    token = Path(up.environ(hub, output)["HF_TOKEN_PATH"])
    token.write_text("hf_readreadreadreadread")
    assert up.once(hub, output) == 3
    assert (up.fault_kind(output), up.on_hub(hub)) == ("account", {})
    token.write_text(up.TOKEN)
    assert up.once(hub, output) == 0
    hub.tokens.clear()
    assert up.once(hub, output) == 3, "even if nothing is new"


@up.BOTH_WAYS
def test_a_full_storage_is_for_a_person(hub: Hub, output: Path) -> None:
    for stage in ("batch", "xorb"):
        hub.fail(stage, status=403, message="Private repository storage limit reached", times=None)
    assert up.once(hub, output) == 3
    assert (up.fault_kind(output), up.on_hub(hub)) == ("account", {})
    hub.clear()
    assert up.once(hub, output) == 0
    up.assert_arrived(hub, output)


HUGE, README = "phase_1/huge.bin", "README.md"
REFUSED: dict[str, tuple[str, bytes, Callable[[Hub, str], object]]] = {
    "put": (HUGE, b"1", lambda hub, sha: hub.fail("put", status=413, times=None, match=sha)),
    "put before the body is read": (
        HUGE,
        up.content(3_000_000, "huge"),
        lambda hub, sha: hub.fail("put", status=413, early=True, times=None, match=sha),
    ),
    "put of a checkpoint": (
        "phase_1/checkpoints/SEQTRACK_ep0002.safetensors",
        b"",
        lambda hub, sha: hub.fail("put", status=413, times=None, match=sha),
    ),
    "commit": (HUGE, b"3", lambda hub, _: setattr(hub, "refuse_path", HUGE)),
    "object of a batch": (HUGE, b"4", lambda hub, sha: hub.fail("batch", object_error=(sha, 422), times=None)),
    "metadata": (README, b"---\nlicense: [\n---\n", lambda hub, _: hub.fail("yaml", status=400, times=None)),
    "encoding": (README, b"\xff\xfe no text", lambda hub, _: hub.fail("yaml", status=400, times=None)),
}


@pytest.mark.parametrize("where", REFUSED)
def test_one_file_that_is_refused_is_quarantined_and_holds_no_other_up(hub: Hub, output: Path, where: str) -> None:
    name, data, refuse = REFUSED[where]
    bad = up.put(output / name, data) if data else output / name
    refuse(hub, digest(bad))
    hub.fail("xorb", status=413, times=None)  # which cannot be any file's
    assert up.once(hub, output) == 3
    assert list(up.status(output)["problems"]) == [name]
    for path in (bad, bad.with_suffix(".json")):
        path.unlink(missing_ok=True)
    up.assert_arrived(hub, output)


def test_one_file_at_which_the_line_breaks_each_time_holds_no_other_up(hub: Hub, output: Path) -> None:
    bad, fake = up.put(output / "phase_1" / "cursed.bin", up.content(50_000, "cursed")), up.FakeTime()
    hub.fail("put", reset="middle", times=None, match=digest(bad))

    def clear() -> None:
        assert len(up.on_hub(hub)) == 8, "all the others"
        hub.clear()

    fake.after(600, clear)
    up.finish(output)
    assert up.watch(hub, output, time=fake) == 0
    up.assert_arrived(hub, output)


@pytest.mark.parametrize("kind", ["bytes", "size"])
def test_other_bytes_than_were_sent_are_noticed(hub: Hub, output: Path, kind: str) -> None:
    """The listing after the commit is wrong once: nothing counts as verified until it is right."""
    hub.fail("paths-info", times=2)  # the questions before, for files and for a marker: answered as they are
    wrong = hub.fail("paths-info", corrupt=kind)
    with up.uploader(hub, output) as (at_work, _):
        at_work.step()
        at_work.step()
        assert (wrong.times, at_work.state.files) == (0, {})
        assert at_work.run(once=True) == 0
    up.assert_arrived(hub, output)


@up.LFS
def test_a_server_that_stores_too_little_is_never_believed(hub: Hub, output: Path) -> None:
    hub.fail("put", corrupt="size", times=None)
    assert up.once(hub, output) == 3
    assert not any(path.endswith(".safetensors") for path in up.on_hub(hub))


WAYS: dict[str, tuple[str, object]] = {
    "a new repo without a commit": ("starts_empty", True),
    "checkpoints inside the commit": ("knows_lfs", False),
    "a .gitignore in the repo": ("ignores", "by default"),
    "pages of three files": ("page", 3),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_protocol_leaves_open_does_not_matter(hub: Hub, output: Path, way: str) -> None:
    setattr(hub, *WAYS[way])
    up.put(output / "phase_1" / "twin.png", (output / "phase_1" / "plots" / "phase_1_loss.png").read_bytes())
    for epoch in range(3, 7) if not hub.knows_lfs else ():
        up.checkpoint(output, epoch, size=9_000_000)
    assert up.once(hub, output) == 0
    up.assert_arrived(hub, output)
    assert None not in hub.parents[hub.starts_empty :], "a commit names the head it was made on"
    commits = len(hub.repos[up.REPO].commits)
    assert commits == 2 - hub.starts_empty + (not hub.knows_lfs), "32 MB in one, at most"
    (output / ".uploads" / "status.json").unlink()
    assert up.once(hub, output) == 0
    assert len(hub.repos[up.REPO].commits) == commits, "nothing is sent a second time"


def test_a_file_that_the_server_will_have_ignored_is_named_and_makes_no_empty_commit(hub: Hub, output: Path) -> None:
    hub.ignores = "always"
    assert up.once(hub, output) == 3
    assert ".gitignore" in up.status(output)["problems"]["phase_1/logs/metrics.jsonl"]
    assert len(hub.repos[up.REPO].commits) == 2, "the repo's own first commit, and ours"
    (output / "phase_1" / "logs" / "metrics.jsonl").unlink()
    up.assert_arrived(hub, output)
