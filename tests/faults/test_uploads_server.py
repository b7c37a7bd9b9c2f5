"""What the server can do to an upload: each fault of the protocol, and afterwards every file there, once, complete."""

import hashlib
import itertools
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from uploads.harness import (
    REPO,
    TOKEN,
    FakeTime,
    assert_arrived,
    checkpoint,
    content,
    environ,
    fault_kind,
    finish,
    on_hub,
    once,
    put,
    status,
    until,
    uploader,
    uploader_process,
    watch,
)
from uploads.hub_server import COMMIT_LIMIT_TEXT, Hub, make_entry

from seqtrack.errors import UserError
from seqtrack.uploads.state import health_problems, read_state
from seqtrack.uploads.target import UploadSettings

STAGES = ("whoami", "create", "info", "paths-info", "preupload", "batch", "put", "verify", "commit")
FOR_EVER = 600.0


@pytest.mark.parametrize("stage", STAGES)
def test_errors_a_reset_and_a_hang_at_a_stage_pass(hub: Hub, output: Path, stage: str) -> None:
    codes = itertools.islice(itertools.cycle((500, 502, 503, 504)), STAGES.index(stage), STAGES.index(stage) + 2)
    faults = [hub.fail(stage, status=code) for code in codes]
    faults += [hub.fail(stage, reset="before"), hub.fail(stage, hang_s=FOR_EVER)]
    assert once(hub, output, read_timeout_s=0.4) == 0
    # An object whose verification failed is stored; nothing of it is called a second time.
    assert all(fault.times == 0 for fault in (faults[:1] if stage == "verify" else faults))
    assert_arrived(hub, output)


@pytest.mark.parametrize("stage", ["preupload", "put", "commit"])
def test_a_stage_that_fails_for_ever_leaves_nothing_half_done(hub: Hub, output: Path, stage: str) -> None:
    fault, time = hub.fail(stage, status=503, times=None), FakeTime()
    began = time.now
    assert once(hub, output, time=time) == 3
    assert 60 < time.now - began < 200, "it is patient for two minutes"
    assert on_hub(hub) == {}
    hub.faults.remove(fault)
    assert once(hub, output) == 0
    assert_arrived(hub, output)


def test_a_verification_that_fails_for_ever_holds_nothing_up(hub: Hub, output: Path) -> None:
    """The object is stored by then, and what the commit holds is asked of the listing, not of this call."""
    hub.fail("verify", status=503, times=None)
    assert once(hub, output) == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize(
    ("stage", "code", "message", "headers", "least_s"),
    [
        ("preupload", 429, "", {"Retry-After": "70"}, 70),
        ("batch", 503, "", {"Retry-After": "70"}, 70),
        ("commit", 429, "", {"Retry-After": "DATE"}, 60),
        ("commit", 429, "", {"RateLimit": '"api";r=0;t=69', "RateLimit-Policy": '"fixed window"'}, 70),
        ("commit", 429, COMMIT_LIMIT_TEXT, {"RateLimit": '"api";r=949;t=20'}, 900),
    ],
    ids=["seconds", "unavailable", "date", "ratelimit", "hourly limit of commits"],
)
def test_a_wait_that_is_asked_for_is_kept(
    hub: Hub, output: Path, stage: str, code: int, message: str, headers: dict[str, str], least_s: float
) -> None:
    date = formatdate(time.time() + 70, usegmt=True)
    headers = {name: value.replace("DATE", date) for name, value in headers.items()}
    hub.fail(stage, status=code, message=message, headers=headers)
    finish(output)
    with uploader(hub, output, request_tries=3) as (at_work, runner):
        assert at_work.run() == 0
    first, second, *_ = runner.called_at
    assert least_s <= second - first < least_s + 20
    assert_arrived(hub, output)


def test_one_pass_does_not_wait_longer_than_its_patience(hub: Hub, output: Path) -> None:
    hub.fail("commit", status=429, message=COMMIT_LIMIT_TEXT, times=None)
    fake = FakeTime()
    began = fake.now
    assert once(hub, output, time=fake) == 3
    assert fake.now - began < 60, "it is known at once that the wait is longer"


def test_a_server_that_is_away_at_start_and_restarts_in_the_middle(hub: Hub, output: Path) -> None:
    port, fake = hub.port, FakeTime()

    def restart() -> None:
        hub.stop()
        hub.start(port)

    hub.stop()
    fake.after(30, lambda: hub.start(port))
    slow = hub.fail("put", action=restart)
    finish(output)
    assert watch(hub, output, time=fake) == 0
    assert slow.times == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize(("stage", "reset"), [("put", "middle"), ("put", "after"), ("commit", "after")])
def test_a_call_that_is_cut_or_whose_reply_is_lost_is_not_made_twice(
    hub: Hub, output: Path, stage: str, reset: str
) -> None:
    hub.fail(stage, reset=reset)
    assert once(hub, output) == 0
    assert hub.stages().count("commit") == 1
    assert_arrived(hub, output)


def test_a_commit_that_is_applied_long_after_we_gave_it_up_is_not_made_twice(hub: Hub, output: Path) -> None:
    hub.fail("commit", hang_s=FOR_EVER)
    assert once(hub, output, read_timeout_s=0.5) == 0
    hub.clear()  # only now is the first call applied, on a head that is none any longer
    until(lambda: hub.refused_commits == 1, what="the late commit's refusal")
    assert_arrived(hub, output)


def test_a_batch_that_outlives_its_deadline_is_ended_and_sent_again(hub: Hub, output: Path) -> None:
    hub.fail("batch", hang_s=FOR_EVER)
    with uploader_process(hub, output, "--once", read_timeout_s=60, deadline_s=2) as running:
        assert running.end() == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize("begin", ["wrong", "withdrawn"])
def test_a_refused_token_is_unhealthy_in_one_line_and_its_replacement_is_noticed(
    hub: Hub, output: Path, begin: str, caplog: pytest.LogCaptureFixture
) -> None:
    token, fake = Path(environ(hub, output)["HF_TOKEN_PATH"]), FakeTime()

    def withdraw() -> None:
        hub.tokens = {"hf_secondsecondsecond": "write"}
        checkpoint(output, 3)
        finish(output)

    def renew() -> None:
        assert fault_kind(output) == "account"
        (problem,) = health_problems(read_state(output), UploadSettings(), fake.now)
        assert "HF_TOKEN_PATH" in problem and "\n" not in problem
        token.write_text("hf_secondsecondsecond\n")

    if begin == "wrong":
        token.write_text("hf_mistypedmistypedmistyped")
        withdraw()
    else:
        fake.after(50, withdraw)
    fake.after(130, renew)
    with caplog.at_level("INFO", "seqtrack"):
        assert watch(hub, output, time=fake) == 0
    assert caplog.text.count("HF_TOKEN_PATH") == 1
    assert "hf_mistyped" not in caplog.text + (output / ".uploads" / "status.json").read_text()
    assert_arrived(hub, output, commits_each=None)


def test_what_a_person_must_fix_is_reported_and_tried_again(hub: Hub, output: Path) -> None:
    hub.fail("preupload", status=403, message="You have exceeded your private storage quota", times=2)
    fake, seen = FakeTime(), set()
    fake.after(50, lambda: seen.add(fault_kind(output)))
    finish(output)
    assert watch(hub, output, time=fake) == 0
    assert seen == {"account"}
    assert_arrived(hub, output)


def test_a_token_that_may_only_read_is_refused(hub: Hub, output: Path) -> None:
    hub.create(REPO, private=True)
    Path(environ(hub, output)["HF_TOKEN_PATH"]).write_text("hf_readreadreadreadread")
    assert once(hub, output) == 3
    assert (fault_kind(output), on_hub(hub)) == ("account", {})


SETUPS = {"HF_HUB_OFFLINE": "1", "SSL_CERT_FILE": "nonexistent.pem", "ALL_PROXY": "socks5://127.0.0.1:9"}


@pytest.mark.parametrize("name", SETUPS)
def test_a_setup_in_which_nothing_can_be_reached_is_a_users_error(
    hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", name == "HF_HUB_OFFLINE")
    with pytest.raises(UserError) as refused:
        once(hub, output, variables={name: SETUPS[name], "NO_PROXY": "", "no_proxy": ""})
    assert refused.value.code == "upload.setup"
    assert hub.calls == []


def test_the_address_in_the_answer_about_a_new_repo_does_not_matter(hub: Hub, output: Path) -> None:
    endpoint, hub.public_host = hub.endpoint, "hub.internal"
    assert once(hub, output, variables={"HF_ENDPOINT": endpoint}) == 0
    assert_arrived(hub, output)


def test_a_repo_that_is_deleted_is_created_again_and_filled_again(hub: Hub, output: Path) -> None:
    def delete() -> None:
        assert len(on_hub(hub)) == 7
        hub.repos.clear()
        hub.objects.clear()
        checkpoint(output, 3)
        finish(output)

    fake = FakeTime()
    fake.after(50, delete)
    assert watch(hub, output, time=fake) == 0
    assert_arrived(hub, output, commits_each=None)


@pytest.mark.parametrize("code", [409, 403])
def test_a_repo_that_exists_though_creating_it_is_refused(hub: Hub, output: Path, code: int) -> None:
    hub.create(REPO, private=True)
    if code == 403:
        hub.fail("create", status=403, message="no right to create in this namespace", times=None)
    assert once(hub, output) == 0
    assert_arrived(hub, output)


def test_a_second_writer_between_our_reading_and_our_commit(hub: Hub, output: Path) -> None:
    hub.fail("commit", action=lambda: hub.add_commit(REPO, {"README.md": make_entry(b"by hand")}))
    assert once(hub, output) == 0
    assert hub.refused_commits == 1
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
    hub.fail("put", status=413, times=None, match=hashlib.sha256(files[0].read_bytes()).hexdigest())
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
    assert once(hub, output) == 3
    assert list(status(output)["problems"]) == [bad[0].relative_to(output).as_posix()]
    for path in bad:
        path.unlink()
    assert_arrived(hub, output)


def test_one_file_at_which_the_line_breaks_each_time_holds_no_other_up(hub: Hub, output: Path) -> None:
    bad, fake = put(output / "phase_1" / "cursed.bin", content(50_000, "cursed")), FakeTime()
    hub.fail("put", reset="middle", times=None, match=hashlib.sha256(bad.read_bytes()).hexdigest())

    def clear() -> None:
        assert len(on_hub(hub)) == 8, "all the others"
        hub.clear()

    fake.after(600, clear)
    finish(output)
    assert watch(hub, output, time=fake) == 0
    assert_arrived(hub, output)


def test_passing_trouble_of_an_object_or_its_address_passes(hub: Hub, output: Path) -> None:
    bad = put(output / "phase_1" / "bad.bin", content(50_000, "bad"))
    hub.fail("batch", object_error=(hashlib.sha256(bad.read_bytes()).hexdigest(), 503), times=2)
    hub.fail("put", status=403, message="Request has expired", times=3)
    assert once(hub, output) == 0
    assert_arrived(hub, output)


@pytest.mark.parametrize("kind", ["bytes", "size"])
def test_other_bytes_than_were_sent_are_noticed(hub: Hub, output: Path, kind: str) -> None:
    """The listing after the commit is wrong once: nothing counts as verified until it is right."""
    hub.fail("paths-info")  # the question before: answered as it is
    wrong = hub.fail("paths-info", corrupt=kind)
    with uploader(hub, output) as (at_work, _):
        at_work.step()
        at_work.step()
        assert (wrong.times, at_work.state.files) == (0, {})
        assert at_work.run(once=True) == 0
    assert_arrived(hub, output)


def test_a_server_that_stores_too_little_is_never_believed(hub: Hub, output: Path) -> None:
    hub.fail("put", corrupt="size", times=None)
    assert once(hub, output) == 3
    assert not any(path.endswith(".safetensors") for path in on_hub(hub))


@pytest.mark.parametrize("stage", ["part", "complete"])
def test_a_large_file_in_parts_survives_the_failure_of_one(hub: Hub, tmp_path: Path, stage: str) -> None:
    hub.multipart_bytes = 30_000
    output = tmp_path / "output"
    checkpoint(output, 1, size=100_000)
    hub.fail(stage, status=500)
    hub.fail(stage, reset="before")
    assert once(hub, output) == 0
    assert hub.stages().count("part") >= 4
    assert_arrived(hub, output)


def test_a_server_that_does_not_speak_xet_gets_its_files_over_lfs(hub: Hub, output: Path) -> None:
    with uploader_process(hub, output, "--once", variables={"HF_HUB_DISABLE_XET": ""}) as running:
        assert running.end() == 0
    assert_arrived(hub, output)


def test_a_third_of_all_calls_failing_costs_nothing_but_time(hub: Hub, output: Path) -> None:
    assert TOKEN in hub.tokens
    for kind, chance in (({"status": 503}, 0.15), ({"reset": "before"}, 0.12), ({"reset": "after"}, 0.1)):
        hub.fail("any", times=None, chance=chance, **kind)
    for number in range(10):
        put(output / "phase_1" / "files" / f"{number}.bin", content(20_000, number))
    finish(output)
    assert watch(hub, output, tries_per_file=1000, request_tries=3) == 0
    assert_arrived(hub, output)


WAYS: dict[str, tuple[str, object]] = {
    "a new repo without a commit": ("starts_empty", True),
    "checkpoints inside the commit": ("knows_lfs", False),
    "a .gitignore in the repo": ("ignores", "by default"),
    "pages of three files": ("page", 3),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_protocol_leaves_open_does_not_matter(hub: Hub, output: Path, way: str) -> None:
    setattr(hub, *WAYS[way])
    put(output / "phase_1" / "twin.png", (output / "phase_1" / "plots" / "phase_1_loss.png").read_bytes())
    for epoch in range(3, 7) if not hub.knows_lfs else ():
        checkpoint(output, epoch, size=9_000_000)
    assert once(hub, output) == 0
    assert_arrived(hub, output)
    assert None not in hub.parents[hub.starts_empty :], "a commit names the head it was made on"
    commits = len(hub.repos[REPO].commits)
    assert commits == 2 - hub.starts_empty + (not hub.knows_lfs), "32 MB in one, at most"
    (output / ".uploads" / "status.json").unlink()
    assert once(hub, output) == 0
    assert len(hub.repos[REPO].commits) == commits, "nothing is sent a second time"


def test_a_file_that_the_server_will_have_ignored_is_named_and_makes_no_empty_commit(hub: Hub, output: Path) -> None:
    hub.ignores = "always"
    assert once(hub, output) == 3
    assert ".gitignore" in status(output)["problems"]["phase_1/logs/metrics.jsonl"]
    assert len(hub.repos[REPO].commits) == 2, "the repo's own first commit, and ours"
    (output / "phase_1" / "logs" / "metrics.jsonl").unlink()
    assert_arrived(hub, output)
