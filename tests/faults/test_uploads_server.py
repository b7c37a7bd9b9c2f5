"""What the server can do to an upload: each fault of the protocol, and afterwards every file there, once, whole.

The sidecar runs as a process against a real server; the faults are the server's.
"""

import hashlib
import subprocess
import sys
import threading
import time
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
    sidecar,
    status,
    until,
)
from uploads.hub_server import COMMIT_LIMIT_TEXT, Hub

STAGES = ("whoami", "create", "info", "paths-info", "preupload", "batch", "put", "verify", "commit")
FAILING = (500, 502, 503, 504)


@pytest.mark.parametrize("stage", STAGES)
def test_errors_and_a_reset_at_a_stage_pass(hub: Hub, output: Path, stage: str) -> None:
    number = STAGES.index(stage)
    faults = [hub.fail(stage, status=FAILING[(number + turn) % 4]) for turn in range(2)]
    faults.append(hub.fail(stage, reset="before"))
    assert once(environ(hub, output)) == 0
    # An object whose verification failed is stored; nothing of it is called a second time.
    assert [fault.times for fault in faults][: 1 if stage == "verify" else None] == [0] * (
        1 if stage == "verify" else 3
    )
    assert_arrived(hub, output)


@pytest.mark.parametrize("stage", ["preupload", "batch", "put", "commit"])
def test_a_stage_that_fails_for_ever_leaves_nothing_half_done(hub: Hub, output: Path, stage: str) -> None:
    fault = hub.fail(stage, status=503, times=None)
    env = environ(hub, output, UPLOAD_PATIENCE_S="1.5", UPLOAD_TRIES_BEFORE_APART="1000")
    assert once(env) == 3
    assert on_hub(hub) == {}
    hub.faults.remove(fault)
    assert once(env) == 0
    assert_arrived(hub, output)


def test_a_verification_that_fails_for_ever_keeps_nothing_back(hub: Hub, output: Path) -> None:
    """The object is stored by then, and what the commit holds is asked of the listing, not of this call."""
    hub.fail("verify", status=503, times=None)
    assert once(environ(hub, output)) == 0
    assert set(hub.puts.values()) == {1}
    assert_arrived(hub, output)


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"Retry-After": "2"}, 2.0),
        ({"Retry-After": "DATE"}, 0.0),
        ({"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 2.0),
    ],
    ids=["seconds", "date", "ratelimit"],
)
@pytest.mark.parametrize(("stage", "code"), [("preupload", 429), ("commit", 429), ("batch", 503)])
def test_a_wait_that_is_asked_for_is_kept(
    hub: Hub, output: Path, stage: str, code: int, headers: dict[str, str], least: float
) -> None:
    from email.utils import formatdate

    until = int(time.time()) + 6 if "DATE" in headers.values() else 0
    headers = {k: formatdate(until, usegmt=True) if v == "DATE" else v for k, v in headers.items()}
    if code == 503 and "RateLimit" in headers:
        headers = {"Retry-After": "2"} | headers  # the rate limit is only spoken of with 429
    hub.fail(stage, status=code, headers=headers)
    assert once(environ(hub, output, UPLOAD_REQUEST_TRIES="3")) == 0
    times = [call["time"] for call in hub.calls if call["stage"] == stage]
    assert times[0] < until or until == 0, "the client was slower than the wait that this is about"
    assert times[1] >= max(until, times[0] + least)
    assert_arrived(hub, output)


def test_the_hourly_limit_of_commits_is_waited_out_though_its_header_says_there_is_room(hub: Hub, output: Path) -> None:
    hub.fail("commit", status=429, message=COMMIT_LIMIT_TEXT, headers={"RateLimit": '"api";r=949;t=200'}, times=2)
    # The longest wait stands for the hour: a quarter of it first, then half.
    assert once(environ(hub, output, UPLOAD_COMMIT_LIMIT_WAIT_S="4")) == 0
    times = [call["time"] for call in hub.calls if call["stage"] == "commit"]
    assert times[1] - times[0] >= 1.0
    assert times[2] - times[1] >= 2.0
    assert_arrived(hub, output)


def test_a_server_that_is_not_there_at_start_and_restarts_in_the_middle(hub: Hub, output: Path) -> None:
    port = hub.port
    hub.stop()
    with sidecar(environ(hub, output)) as running:
        until(lambda: status(output).get("failures", 0) >= 2, what="failures in the status")
        assert status(output)["fault"]["kind"] == "network"
        slow = hub.fail("put", rate=50_000, times=1)
        hub.start(port)
        until(lambda: slow.times == 0)
        hub.stop()
        time.sleep(0.3)
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
    assert hub.stages().count("commit") == 1
    assert_arrived(hub, output)


def test_a_commit_that_is_applied_long_after_we_gave_it_up_is_not_made_twice(hub: Hub, output: Path) -> None:
    hub.fail("commit", hang_s=2.5)  # longer than the read timeout: applied while we already try again
    assert once(environ(hub, output, UPLOAD_REQUEST_TRIES="3", UPLOAD_READ_TIMEOUT_S="1")) == 0
    until(lambda: len(hub.calls) and hub.stages().count("commit") >= 1)
    time.sleep(2.0)
    assert_arrived(hub, output)


@pytest.mark.parametrize(
    "stages", [("whoami", "create"), ("info", "paths-info"), ("preupload", "batch"), ("put", "verify", "commit")]
)
def test_a_call_that_hangs_is_given_up(hub: Hub, output: Path, stages: tuple[str, ...]) -> None:
    for stage in stages:
        hub.fail(stage, hang_s=300)
    assert once(environ(hub, output, UPLOAD_READ_TIMEOUT_S="1")) == 0
    assert_arrived(hub, output)


def test_a_batch_that_outlives_its_deadline_is_ended_and_sent_again(hub: Hub, output: Path) -> None:
    hub.fail("batch", hang_s=60)
    assert once(environ(hub, output, UPLOAD_READ_TIMEOUT_S="60", UPLOAD_DEADLINE_S="2")) == 0
    assert_arrived(hub, output)


def test_a_line_so_slow_that_a_deadline_is_too_short_gets_there_in_the_end(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    # More than the kernel's buffers take; 3.5 s for the file, and the first deadline is 1.3 s.
    checkpoint(output, 1, size=14_000_000)
    hub.fail("put", rate=4_000_000, times=None)
    env = environ(hub, output, UPLOAD_DEADLINE_S="1.3", UPLOAD_LEAST_RATE_KB_S="1000000")
    with sidecar(env, "--once") as running:
        assert running.wait() == 0
    assert "Xet" not in running.said(), "where it is switched off it is not to blame"
    assert_arrived(hub, output)


def test_a_wrong_token_is_unhealthy_in_one_line_and_its_mending_is_noticed(hub: Hub, output: Path) -> None:
    env = environ(hub, output, UPLOAD_SLOW_RETRY_S="600")
    token = Path(env["HF_TOKEN_PATH"])
    token.write_text("hf_mistypedmistypedmistyped")
    finish(output)
    with sidecar(env) as running:
        until(lambda: status(output).get("fault"), what="the fault")
        health = subprocess.run(
            [sys.executable, "-m", "seqtrack", "upload", "status", "--health"],
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert health.returncode == 1
        assert health.stdout.count("\n") == 1
        assert "HF_TOKEN_PATH" in health.stdout
        token.write_text(TOKEN)
        assert running.wait() == 0
        told = [line for line in running.said().splitlines() if "token was refused" in line]
    assert len(told) == 1
    assert "hf_mistyped" not in running.said() + (output / ".uploads" / "status.json").read_text()
    assert_arrived(hub, output)


def test_a_token_that_is_withdrawn_later_and_renewed(hub: Hub, output: Path) -> None:
    env = environ(hub, output, UPLOAD_SLOW_RETRY_S="600")
    with sidecar(env) as running:
        until(lambda: on_hub(hub))
        hub.tokens = {"hf_secondsecondsecond": "write"}
        checkpoint(output, 3)
        finish(output)
        until(lambda: (status(output).get("fault") or {}).get("kind") == "token")
        Path(env["HF_TOKEN_PATH"]).write_text("hf_secondsecondsecond\n")
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


@pytest.mark.parametrize(
    ("status_code", "message", "kind"),
    [
        (403, "You have exceeded your private storage quota", "quota"),
        (403, "You do not have the rights to write to this repo", "permission"),
    ],
    ids=["quota", "read-only"],
)
def test_what_a_person_must_mend_is_said_and_tried_again(
    hub: Hub, output: Path, status_code: int, message: str, kind: str
) -> None:
    hub.fail("preupload", status=status_code, message=message, times=2)
    finish(output)
    with sidecar(environ(hub, output)) as running:
        until(lambda: (status(output).get("fault") or {}).get("kind") == kind)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_a_token_that_may_only_read_is_refused_with_what_to_do(hub: Hub, output: Path) -> None:
    hub.create(REPO, private=True)
    env = environ(hub, output)
    Path(env["HF_TOKEN_PATH"]).write_text("hf_readreadreadreadread")
    with sidecar(env, "--once") as running:
        assert running.wait() == 3
    assert "write access" in running.said()
    assert on_hub(hub) == {}


def test_a_repo_that_is_deleted_is_made_again_and_filled_again(hub: Hub, output: Path) -> None:
    with sidecar(environ(hub, output)) as running:
        until(lambda: len(on_hub(hub)) >= 7)
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
    fault = hub.fail("commit", hang_s=0.5)
    writer = threading.Thread(target=lambda: (until(lambda: fault.times == 0), _write_readme(hub)))
    writer.start()
    assert once(environ(hub, output)) == 0
    writer.join()
    assert hub.tree(REPO)["README.md"].data == b"by hand"
    del hub.tree(REPO)["README.md"]
    assert_arrived(hub, output)


def _write_readme(hub: Hub) -> None:
    from uploads.hub_server import make_entry

    with hub.lock:
        hub.add_commit(REPO, {"README.md": make_entry(b"by hand")}, ())


@pytest.mark.parametrize("stage", ["put", "put of a checkpoint", "commit"])
def test_one_file_that_is_too_large_does_not_keep_the_others_back(hub: Hub, output: Path, stage: str) -> None:
    bad = put(output / "phase_1" / "huge.bin", content(50_000, "huge"))
    if stage == "put of a checkpoint":
        bad.unlink()
        bad, manifest = checkpoint(output, 3)
    if stage != "commit":
        hub.fail("put", status=413, message="too large", times=None, match=hashlib.sha256(bad.read_bytes()).hexdigest())
    else:
        hub.refuse_path = "phase_1/huge.bin"
    env = environ(hub, output, UPLOAD_SLOW_RETRY_S="600")
    with sidecar(env, "--once") as running:
        assert running.wait() == 3
    assert f"{bad.relative_to(output)} is set apart" in running.said()
    bad.unlink()
    if stage == "put of a checkpoint":
        manifest.unlink()
    assert_arrived(hub, output)


def test_an_answer_before_the_body_was_read_is_heard(hub: Hub, output: Path) -> None:
    bad = put(output / "phase_1" / "huge.bin", content(3_000_000, "huge"))
    digest = hashlib.sha256(bad.read_bytes()).hexdigest()
    hub.fail("put", status=413, early=True, message="too large", times=None, match=digest)
    with sidecar(environ(hub, output, UPLOAD_SLOW_RETRY_S="600"), "--once") as running:
        assert running.wait() == 3
    bad.unlink()
    assert_arrived(hub, output)


def test_one_file_at_which_the_line_breaks_each_time_does_not_keep_the_others_back(hub: Hub, output: Path) -> None:
    bad = put(output / "phase_1" / "cursed.bin", content(50_000, "cursed"))
    digest = hashlib.sha256(bad.read_bytes()).hexdigest()
    hub.fail("put", reset="middle", times=None, match=digest)
    with sidecar(environ(hub, output)) as running:
        until(lambda: len(on_hub(hub)) == 7, what="the others")
        assert "phase_1/cursed.bin" not in on_hub(hub)
        hub.clear()
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize("data", [b"---\nlicense: [\n---\n", b"\xff\xfe no text"], ids=["metadata", "bytes"])
def test_a_readme_that_is_not_accepted_does_not_keep_the_others_back(hub: Hub, output: Path, data: bytes) -> None:
    readme = put(output / "README.md", data)
    hub.fail("yaml", status=400, message="bad metadata", times=None)
    with sidecar(environ(hub, output, UPLOAD_SLOW_RETRY_S="600"), "--once") as running:
        assert running.wait() == 3
    assert "README.md is set apart" in running.said()
    readme.unlink()
    assert_arrived(hub, output)


@pytest.mark.parametrize(("code", "times"), [(503, 4), (422, None)], ids=["passing", "for ever"])
def test_trouble_with_one_object_of_a_batch_passes_or_sets_it_apart(
    hub: Hub, output: Path, code: int, times: int | None
) -> None:
    bad = put(output / "phase_1" / "bad.bin", content(50_000, "bad"))
    digest = hashlib.sha256(bad.read_bytes()).hexdigest()
    hub.fail("batch", object_error=(digest, code), times=times)
    with sidecar(environ(hub, output, UPLOAD_SLOW_RETRY_S="600"), "--once") as running:
        assert running.wait() == (0 if code == 503 else 3)
    assert ("bad.bin is set apart" in running.said()) == (code == 422)
    if code == 422:
        bad.unlink()
    assert_arrived(hub, output)


def test_a_storage_address_that_is_too_old_is_exchanged_for_a_new_one(hub: Hub, output: Path) -> None:
    hub.fail("put", status=403, message="Request has expired", times=3)
    env = environ(hub, output, UPLOAD_SLOW_RETRY_S="600")
    with sidecar(env, "--once") as running:
        assert running.wait() == 0
    assert "write access" not in running.said()
    assert_arrived(hub, output)


@pytest.mark.parametrize("kind", ["bytes", "size", "one of two sizes"])
def test_other_bytes_than_were_sent_are_noticed(hub: Hub, output: Path, kind: str) -> None:
    """The listing after the commit is wrong once: nothing counts as verified until it is right."""
    hub.fail("paths-info", status=None, times=1)  # the question before: answered as it is
    hub.fail("paths-info", corrupt=kind, times=1)
    with sidecar(environ(hub, output), "--once") as running:
        assert running.wait() == 0
    assert "mismatch" in running.said()
    assert_arrived(hub, output)


def test_a_server_that_stores_too_little_is_never_believed(hub: Hub, output: Path) -> None:
    hub.fail("put", corrupt="size", times=None)
    with sidecar(environ(hub, output, UPLOAD_PATIENCE_S="3"), "--once") as running:
        assert running.wait() == 3
    assert not any(path.endswith(".safetensors") for path in on_hub(hub))


@pytest.mark.parametrize("stage", ["part", "complete"])
def test_a_large_file_in_parts_survives_the_failure_of_one(tmp_path: Path, stage: str) -> None:
    hub = Hub(multipart_bytes=30_000).start()
    output = tmp_path / "output"
    checkpoint(output, 1, size=100_000)
    hub.fail(stage, status=500)
    hub.fail(stage, reset="before")
    assert once(environ(hub, output, UPLOAD_REQUEST_TRIES="2")) == 0
    assert hub.stages().count("part") >= 4
    assert_arrived(hub, output)
    hub.stop()
    hub.discard()


def test_a_server_that_does_not_speak_xet_gets_its_files_over_lfs(hub: Hub, output: Path) -> None:
    env = environ(hub, output)
    del env["HF_HUB_DISABLE_XET"]
    with sidecar(env, "--once") as running:
        assert running.wait() == 0
    assert running.said().count("over LFS from now on") == 1
    assert_arrived(hub, output)
