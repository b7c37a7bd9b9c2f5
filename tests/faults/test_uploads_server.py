"""What the server can do to an upload: each fault of the protocol, and afterwards every file there, once, complete."""

import hashlib
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from uploads.harness import (
    REPO,
    TOKEN,
    assert_arrived,
    checkpoint,
    content,
    environ,
    finish,
    on_hub,
    once,
    put,
    status,
    until,
    uploader,
    uploader_process,
)
from uploads.hub_server import COMMIT_LIMIT_TEXT, Hub, make_entry

from seqtrack.uploads.settings import UploadSettings
from seqtrack.uploads.state import health_problems, read_state

STAGES = ("whoami", "create", "info", "paths-info", "preupload", "batch", "put", "verify", "commit")
FAILING = (500, 502, 503, 504)
FOR_EVER = 600.0


def fault_kind(output: Path) -> str | None:
    return (status(output).get("fault") or {}).get("kind")


def calls_of(hub: Hub, stage: str) -> list[float]:
    return [call["time"] for call in hub.calls if call["stage"] == stage]


@pytest.mark.parametrize("stage", STAGES)
def test_errors_and_a_reset_at_a_stage_pass(hub: Hub, output: Path, stage: str) -> None:
    number = STAGES.index(stage)
    faults = [hub.fail(stage, status=FAILING[(number + turn) % 4]) for turn in range(2)]
    faults.append(hub.fail(stage, reset="before"))
    assert once(environ(hub, output)) == 0
    # An object whose verification failed is stored; nothing of it is called a second time.
    assert all(fault.times == 0 for fault in (faults[:1] if stage == "verify" else faults))
    assert_arrived(hub, output)


@pytest.mark.parametrize("stage", ["preupload", "put", "commit"])
def test_a_stage_that_fails_for_ever_leaves_nothing_half_done(hub: Hub, output: Path, stage: str) -> None:
    fault = hub.fail(stage, status=503, times=None)
    assert once(environ(hub, output, patience_s=1)) == 3
    assert on_hub(hub) == {}
    hub.faults.remove(fault)
    assert once(environ(hub, output)) == 0
    assert_arrived(hub, output)


def test_a_verification_that_fails_for_ever_holds_nothing_up(hub: Hub, output: Path) -> None:
    """The object is stored by then, and what the commit holds is asked of the listing, not of this call."""
    hub.fail("verify", status=503, times=None)
    assert once(environ(hub, output)) == 0
    assert set(hub.puts.values()) == {1}
    assert_arrived(hub, output)


@pytest.mark.parametrize(
    ("stage", "code", "headers", "least_s"),
    [
        ("preupload", 429, {"Retry-After": "1"}, 1.0),
        ("commit", 429, {"Retry-After": "DATE"}, 0.0),
        ("batch", 503, {"Retry-After": "1"}, 1.0),
        ("commit", 429, {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 2.0),
    ],
    ids=["seconds", "date", "unavailable", "ratelimit"],
)
def test_a_wait_that_is_asked_for_is_kept(
    hub: Hub, output: Path, stage: str, code: int, headers: dict[str, str], least_s: float
) -> None:
    date = int(time.time()) + 4
    hub.fail(
        stage, status=code, headers={k: formatdate(date, usegmt=True) if v == "DATE" else v for k, v in headers.items()}
    )
    assert once(environ(hub, output, request_tries=3)) == 0
    first, second, *_ = calls_of(hub, stage)
    assert second >= (date if least_s == 0.0 and first < date else first + least_s)
    assert_arrived(hub, output)


def test_the_hourly_limit_of_commits_is_waited_out_though_its_header_leaves_room(hub: Hub, output: Path) -> None:
    hub.fail("commit", status=429, message=COMMIT_LIMIT_TEXT, headers={"RateLimit": '"api";r=949;t=200'}, times=2)
    # The longest wait is the hour: a quarter of it first, then half.
    assert once(environ(hub, output, commit_limit_wait_s=2)) == 0
    times = calls_of(hub, "commit")
    assert times[1] - times[0] >= 0.5 and times[2] - times[1] >= 1.0
    assert_arrived(hub, output)


def test_a_server_that_is_away_at_start_and_restarts_in_the_middle(hub: Hub, output: Path) -> None:
    port = hub.port
    hub.stop()
    with uploader(environ(hub, output)) as running:
        until(lambda: status(output).get("failures", 0) >= 2, what="failures in the status")
        assert fault_kind(output) == "network"
        slow = hub.fail("put", rate=50_000, times=1)
        hub.start(port)
        until(lambda: slow.times == 0)
        hub.stop()
        hub.start(port)
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize("kind", ["middle", "after"])
def test_a_put_that_is_cut_or_whose_reply_is_lost(hub: Hub, output: Path, kind: str) -> None:
    hub.fail("put", reset=kind)
    assert once(environ(hub, output)) == 0
    assert_arrived(hub, output)
    assert set(hub.puts.values()) == {1}, "an object that was stored is not stored again"


def test_a_commit_whose_reply_is_lost_is_not_made_twice(hub: Hub, output: Path) -> None:
    hub.fail("commit", reset="after")
    assert once(environ(hub, output)) == 0
    assert len(calls_of(hub, "commit")) == 1
    assert_arrived(hub, output)


def test_a_commit_that_is_applied_long_after_we_gave_it_up_is_not_made_twice(hub: Hub, output: Path) -> None:
    fault = hub.fail("commit", hang_s=FOR_EVER)
    assert once(environ(hub, output, request_tries=3, read_timeout_s=1)) == 0
    hub.clear()  # only now is the first call applied, on a head that is none any longer
    until(lambda: hub.refused_commits == 1, what="the late commit's refusal")
    assert fault.times == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize("stages", [("whoami", "create"), ("info", "paths-info"), ("preupload", "put"), ("commit",)])
def test_a_call_that_hangs_is_given_up(hub: Hub, output: Path, stages: tuple[str, ...]) -> None:
    for stage in stages:
        hub.fail(stage, hang_s=FOR_EVER)
    assert once(environ(hub, output, read_timeout_s=0.5)) == 0
    assert_arrived(hub, output)


def test_a_batch_that_outlives_its_deadline_is_ended_and_sent_again(hub: Hub, output: Path) -> None:
    hub.fail("batch", hang_s=FOR_EVER)
    with uploader_process(environ(hub, output, read_timeout_s=60, deadline_s=2), "--once") as running:
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_a_line_so_slow_that_a_deadline_is_too_short_gets_there_in_the_end(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    # More than the kernel's buffers take; 3.5 s for the file, and the first deadline is 1.3 s.
    checkpoint(output, 1, size=14_000_000)
    hub.fail("put", rate=4_000_000, times=None)
    with uploader_process(
        environ(hub, output, deadline_s=1.3, least_rate_kb_s=1e6, patience_s=60), "--once"
    ) as running:
        assert running.wait() == 0
    assert "Xet" not in running.said(), "where it is switched off it is not to blame"
    assert_arrived(hub, output)


def test_a_wrong_token_is_unhealthy_in_one_line_and_its_replacement_is_noticed(hub: Hub, output: Path) -> None:
    env = environ(hub, output, slow_retry_s=FOR_EVER)
    token = Path(env["HF_TOKEN_PATH"])
    token.write_text("hf_mistypedmistypedmistyped")
    finish(output)
    with uploader(env) as running:
        until(lambda: fault_kind(output) == "token")
        (problem,) = health_problems(read_state(output), UploadSettings(), time.time())
        assert "HF_TOKEN_PATH" in problem and "\n" not in problem
        token.write_text(TOKEN)
        assert running.wait() == 0
    assert running.said().count("HF_TOKEN_PATH") == 1
    assert "hf_mistyped" not in running.said() + (output / ".uploads" / "status.json").read_text()
    assert_arrived(hub, output)


def test_a_token_that_is_withdrawn_later_and_renewed(hub: Hub, output: Path) -> None:
    env = environ(hub, output, slow_retry_s=FOR_EVER)
    with uploader(env) as running:
        until(lambda: on_hub(hub))
        hub.tokens = {"hf_secondsecondsecond": "write"}
        checkpoint(output, 3)
        finish(output)
        until(lambda: fault_kind(output) == "token")
        Path(env["HF_TOKEN_PATH"]).write_text("hf_secondsecondsecond\n")
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


@pytest.mark.parametrize(
    ("message", "kind"),
    [("You have exceeded your private storage quota", "quota"), ("You have no rights to write to this repo", "token")],
)
def test_what_a_person_must_fix_is_reported_and_tried_again(hub: Hub, output: Path, message: str, kind: str) -> None:
    hub.fail("preupload", status=403, message=message, times=2)
    finish(output)
    with uploader(environ(hub, output)) as running:
        until(lambda: fault_kind(output) == kind)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_a_token_that_may_only_read_is_refused(hub: Hub, output: Path) -> None:
    hub.create(REPO, private=True)
    env = environ(hub, output)
    Path(env["HF_TOKEN_PATH"]).write_text("hf_readreadreadreadread")
    assert once(env) == 3
    assert (fault_kind(output), on_hub(hub)) == ("token", {})


def test_a_repo_that_is_deleted_is_created_again_and_filled_again(hub: Hub, output: Path) -> None:
    with uploader(environ(hub, output)) as running:
        until(lambda: len(on_hub(hub)) >= 7)
        with hub.lock:
            hub.repos.clear()
            hub.objects.clear()
        checkpoint(output, 3)
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


@pytest.mark.parametrize("code", [409, 403])
def test_a_repo_that_exists_though_creating_it_is_refused(hub: Hub, output: Path, code: int) -> None:
    hub.create(REPO, private=True)
    if code == 403:
        hub.fail("create", status=403, message="no right to create in this namespace", times=None)
    assert once(environ(hub, output)) == 0
    assert_arrived(hub, output)


def test_a_second_writer_between_our_reading_and_our_commit(hub: Hub, output: Path) -> None:
    fault = hub.fail("commit", hang_s=FOR_EVER)

    def write() -> None:
        until(lambda: fault.times == 0)
        with hub.lock:
            hub.add_commit(REPO, {"README.md": make_entry(b"by hand")}, ())
        hub.clear()

    writer = threading.Thread(target=write)
    writer.start()
    assert once(environ(hub, output, read_timeout_s=60)) == 0
    writer.join()
    assert hub.tree(REPO).pop("README.md").data == b"by hand"
    assert_arrived(hub, output)


def huge(hub: Hub, output: Path, **fault: object) -> list[Path]:
    bad = put(output / "phase_1" / "huge.bin", content(3_000_000, "huge"))
    digest = hashlib.sha256(bad.read_bytes()).hexdigest()
    if "code" in fault:
        hub.fail("batch", object_error=(digest, fault["code"]), times=None)
    elif fault:
        hub.fail("put", status=413, message="too large", times=None, match=digest, **fault)
    else:
        hub.refuse_path = "phase_1/huge.bin"
    return [bad]


def bad_checkpoint(hub: Hub, output: Path) -> list[Path]:
    files = list(checkpoint(output, 3))
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    hub.fail("put", status=413, message="too large", times=None, match=digest)
    return files


def bad_readme(hub: Hub, output: Path, data: bytes) -> list[Path]:
    hub.fail("yaml", status=400, message="bad metadata", times=None)
    return [put(output / "README.md", data)]


REFUSED: dict[str, Callable[[Hub, Path], list[Path]]] = {
    "put": lambda hub, output: huge(hub, output, early=False),
    "put before the body was read": lambda hub, output: huge(hub, output, early=True),
    "put of a checkpoint": bad_checkpoint,
    "commit": huge,
    "object of a batch": lambda hub, output: huge(hub, output, code=422),
    "metadata": lambda hub, output: bad_readme(hub, output, b"---\nlicense: [\n---\n"),
    "encoding": lambda hub, output: bad_readme(hub, output, b"\xff\xfe no text"),
}


@pytest.mark.parametrize("where", REFUSED)
def test_one_file_that_is_refused_is_quarantined_and_holds_no_other_up(hub: Hub, output: Path, where: str) -> None:
    bad = REFUSED[where](hub, output)
    assert once(environ(hub, output, slow_retry_s=FOR_EVER)) == 3
    assert list(status(output)["problems"]) == [bad[0].relative_to(output).as_posix()]
    for path in bad:
        path.unlink()
    assert_arrived(hub, output)


def test_one_file_at_which_the_line_breaks_each_time_holds_no_other_up(hub: Hub, output: Path) -> None:
    bad = put(output / "phase_1" / "cursed.bin", content(50_000, "cursed"))
    hub.fail("put", reset="middle", times=None, match=hashlib.sha256(bad.read_bytes()).hexdigest())
    with uploader(environ(hub, output)) as running:
        until(lambda: len(on_hub(hub)) == 7, what="the others")
        assert "phase_1/cursed.bin" not in on_hub(hub)
        hub.clear()
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_passing_trouble_with_one_object_of_a_batch_passes(hub: Hub, output: Path) -> None:
    bad = put(output / "phase_1" / "bad.bin", content(50_000, "bad"))
    hub.fail("batch", object_error=(hashlib.sha256(bad.read_bytes()).hexdigest(), 503), times=4)
    assert once(environ(hub, output)) == 0
    assert_arrived(hub, output)


def test_a_storage_address_that_has_expired_is_replaced(hub: Hub, output: Path) -> None:
    hub.fail("put", status=403, message="Request has expired", times=3)
    assert once(environ(hub, output, slow_retry_s=FOR_EVER)) == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize("kind", ["bytes", "size", "one of two sizes"])
def test_other_bytes_than_were_sent_are_noticed(hub: Hub, output: Path, kind: str) -> None:
    """The listing after the commit is wrong once: nothing counts as verified until it is right."""
    hub.fail("paths-info", status=None, times=1)  # the question before: answered as it is
    hub.fail("paths-info", corrupt=kind, times=1)
    with uploader(environ(hub, output), once=True) as running:
        assert running.wait() == 0
    assert "mismatch" in running.said()
    assert_arrived(hub, output)


def test_a_server_that_stores_too_little_is_never_believed(hub: Hub, output: Path) -> None:
    hub.fail("put", corrupt="size", times=None)
    assert once(environ(hub, output, patience_s=1)) == 3
    assert not any(path.endswith(".safetensors") for path in on_hub(hub))


@pytest.mark.parametrize("stage", ["part", "complete"])
def test_a_large_file_in_parts_survives_the_failure_of_one(hub: Hub, tmp_path: Path, stage: str) -> None:
    hub.multipart_bytes = 30_000
    output = tmp_path / "output"
    checkpoint(output, 1, size=100_000)
    hub.fail(stage, status=500)
    hub.fail(stage, reset="before")
    assert once(environ(hub, output, request_tries=2)) == 0
    assert len(calls_of(hub, "part")) >= 4
    assert_arrived(hub, output)


def test_a_server_that_does_not_speak_xet_gets_its_files_over_lfs(hub: Hub, output: Path) -> None:
    env = environ(hub, output)
    del env["HF_HUB_DISABLE_XET"]
    with uploader_process(env, "--once") as running:
        assert running.wait() == 0
    assert running.said().count("LFS") == 1
    assert_arrived(hub, output)
