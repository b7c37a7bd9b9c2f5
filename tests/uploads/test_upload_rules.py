"""The sidecar's decisions, each alone: what is found, what goes first, how long to wait, who is well."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from uploads.harness import checkpoint, put

from seqtrack.config.environment import Environment
from seqtrack.uploads.backoff import Clock, commit_limit_wait, jittered, monotonic_of, pace
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.journal import Journal, Row
from seqtrack.uploads.plan import StabilityTracker, choose_batch, make_agenda
from seqtrack.uploads.recovery import Recovery
from seqtrack.uploads.runner import child_environment
from seqtrack.uploads.scan import FileInfo, Survey, UploadUnit, scan
from seqtrack.uploads.settings import UploadSettings, choose_target
from seqtrack.uploads.status import health_problems

MB = 1024 * 1024


def unit(path: str, *, size: int = 10, mtime: int = 0, promised: bool = False) -> UploadUnit:
    found = FileInfo(path, f"{size}-{mtime}-0-{hash(path) % 1000}", size, mtime)
    return UploadUnit((found,), (size, "0" * 64) if promised else None)


def test_the_walk_pairs_a_checkpoint_with_its_manifest_and_holds_back_a_half(output: Path) -> None:
    checkpoint(output, 3)[1].unlink()
    checkpoint(output, 4)[0].unlink()
    found = scan(output)
    pairs = [tuple(f.path.rsplit("/", 1)[1] for f in u.files) for u in found.units if u.is_checkpoint]
    assert pairs == [(f"SEQTRACK_ep000{n}.safetensors", f"SEQTRACK_ep000{n}.json") for n in (1, 2)]
    assert [path.rsplit("/", 1)[1] for path in found.waiting] == ["SEQTRACK_ep0003.safetensors", "SEQTRACK_ep0004.json"]


def test_the_walk_of_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert scan(tmp_path / "nothing") == Survey((), {}, ())


def test_a_file_is_still_by_our_clock_not_by_its_own(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"1")
    observer = StabilityTracker()
    observer.look(scan(tmp_path), 0.0)
    observer.look(scan(tmp_path), 9.0)
    assert (observer.age("a.txt", 9.0), observer.changed_at) == (9.0, None)
    put(path, b"2")
    observer.look(scan(tmp_path), 10.0)
    assert (observer.age("a.txt", 12.0), observer.changed_at) == (2.0, 10.0)


def test_the_latest_checkpoint_goes_first_and_a_large_one_goes_without_others() -> None:
    old = unit("old.safetensors", size=300 * MB, mtime=1, promised=True)
    new = unit("new.safetensors", size=300 * MB, mtime=2, promised=True)
    log = unit("train.log", mtime=3)
    batch = choose_batch([old, log, new], [], most_bytes=2e9, unit_limit=None, is_apart=set())
    assert batch == [new, log]
    small = [replace(item, files=(replace(item.files[0], size=MB),)) for item in (old, new)]
    batch = choose_batch(small, [], most_bytes=2e9, unit_limit=None, is_apart=set())
    assert [item.files[0].path for item in batch] == ["new.safetensors", "old.safetensors"]


def test_a_batch_keeps_its_limits_and_leaves_out_what_was_set_apart() -> None:
    units = [unit(f"{n}.bin", size=4, mtime=n) for n in range(6)]
    names = [item.files[0].path for item in choose_batch(units, [], most_bytes=9, unit_limit=None, is_apart={"5.bin"})]
    assert names == ["4.bin", "3.bin"]
    assert len(choose_batch(units, [], most_bytes=1e9, unit_limit=3, is_apart=set())) == 3
    assert choose_batch(units[:1], [], most_bytes=1e9, unit_limit=None, is_apart={"0.bin"}) == units[:1]


def test_a_file_larger_than_a_batch_goes_all_the_same() -> None:
    large = unit("large.bin", size=100)
    assert choose_batch([large], [], most_bytes=9, unit_limit=None, is_apart=set()) == [large]


def test_what_is_verified_is_no_longer_on_the_agenda_until_it_changes() -> None:
    one = unit("a.txt")
    row = Row("a.txt", one.files[0].key, 10, state="verified")
    rules = {"settled": lambda _: True, "blocked": lambda _: False}
    assert make_agenda(Survey((one,), {}, ()), {"a.txt": row}, **rules).units == ()
    changed = UploadUnit((replace(one.files[0], key="other"),))
    assert make_agenda(Survey((changed,), {}, ()), {"a.txt": row}, **rules).ready == (changed,)


def test_back_off_grows_to_its_cap_and_draws_from_the_whole_range() -> None:
    rng = random.Random(0)
    draws = [jittered(20, base_s=2, cap_s=600, rng=rng) for _ in range(2000)]
    assert 0 <= min(draws) < 10
    assert 590 < max(draws) <= 600
    assert max(jittered(1, base_s=2, cap_s=600, rng=rng) for _ in range(200)) <= 2
    assert [commit_limit_wait(n, longest_s=3600, asked_s=0) for n in (1, 2, 3, 9)] == [900, 1800, 3600, 3600]


@pytest.mark.parametrize(("stored", "elapsed"), [(950.0, 50.0), (5000.0, 0.0)], ids=["past", "clock set back"])
def test_a_time_kept_over_a_restart_survives_a_jump_of_the_clock(stored: float, elapsed: float) -> None:
    clock = Clock(monotonic=lambda: 100.0, wall=lambda: 1000.0)
    assert monotonic_of(stored, clock) == 100.0 - elapsed
    assert pace(100.0, monotonic_of(stored, clock), 60.0) == 60.0 - elapsed
    assert pace(100.0, None, 60.0) == 0.0


class Ticking:
    now = 0.0

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, wall=lambda: self.now, sleep=lambda _: None)


def test_silence_makes_more_patient_and_success_forgets_it() -> None:
    time = Ticking()
    recovery = Recovery(UploadSettings(), time.clock(), random.Random(0))
    for _ in range(3):
        recovery.record_failure(Fault("deadline", "silence"), num_units=2)
    assert recovery.timeout_factor == 8.0
    recovery.arrived()
    assert (recovery.timeout_factor, recovery.wait_s(), recovery.fault) == (1.0, 0.0, None)


def test_a_refused_batch_is_halved_and_a_named_file_is_not() -> None:
    recovery = Recovery(UploadSettings(), Ticking().clock(), random.Random(0))
    recovery.record_failure(Fault("refused", "no", path="a.txt"), num_units=9)
    assert recovery.unit_limit is None
    recovery.record_failure(Fault("refused", "no"), num_units=9)
    assert recovery.unit_limit == 5
    recovery.arrived()
    assert recovery.unit_limit == 10, "one batch that arrived may be followed by a larger one"


def test_xet_that_fails_is_left_for_lfs() -> None:
    recovery = Recovery(UploadSettings(), Ticking().clock(), random.Random(0))
    recovery.record_failure(Fault("server", "503"), num_units=1)
    assert recovery.use_xet
    recovery.record_failure(Fault("xet", "CAS"), num_units=1)
    assert not recovery.use_xet
    silent = Recovery(UploadSettings(), Ticking().clock(), random.Random(0))
    tried = []
    for _ in range(3):
        tried.append(silent.use_xet)
        silent.record_failure(Fault("deadline", "the batch did not end"), num_units=1)
    assert tried == [True, True, True] and not silent.use_xet, "silence may be the line's; the third time it is not"
    state = Path("/state")
    assert child_environment({}, use_xet=False, state=state)["HF_HUB_DISABLE_XET"] == "1"
    assert "HF_HUB_DISABLE_XET" not in child_environment({"HF_ENDPOINT": ""}, use_xet=True, state=state)
    assert "HF_ENDPOINT" not in child_environment({"HF_ENDPOINT": ""}, use_xet=True, state=state)


def test_only_an_exchanged_token_ends_a_long_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = put(tmp_path / "token", b"one")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    recovery = Recovery(UploadSettings(slow_retry_s=300.0), Ticking().clock(), random.Random(0))
    recovery.record_failure(Fault("token", "refused"), num_units=1)
    assert recovery.wait_s() == 300.0
    put(token, b"two")
    assert recovery.wait_s() == 0.0
    recovery.record_failure(Fault("quota", "full"), num_units=1)
    put(token, b"three")
    assert recovery.wait_s() == 300.0


def test_the_journal_is_of_one_target_and_survives_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "huggingface::me/run")
    journal.write([Row("a.txt", "key", 10, "0" * 64, "verified", 2, 1.5, "commit", "error")])
    journal.set_facts({"last_commit": "12.5"})
    journal.close()
    again = Journal(tmp_path, "huggingface::me/run")
    assert again.rows["a.txt"] == Row("a.txt", "key", 10, "0" * 64, "verified", 2, 1.5, "commit", "error")
    assert again.facts["last_commit"] == "12.5"
    again.close()
    other = Journal(tmp_path, "huggingface::me/another")
    assert other.rows == {}
    other.close()


def test_an_address_that_ends_with_a_slash_is_the_same_target() -> None:
    def key(endpoint: str | None) -> str | None:
        target = choose_target(Environment(hf_repo="me/run", hf_endpoint=endpoint))
        return target and target.key

    assert key("http://hub:80/") == key("http://hub:80") != key(None)
    assert choose_target(Environment()) is None


WELL = {"state": "watching", "time": 1000.0, "oldest_age_s": 5.0, "fault": None, "local_fault": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"time": 900.0}, "sign of life"),
        ({"oldest_age_s": 4000.0}, "waited"),
        ({"fault": {"kind": "token", "line": "refused", "permanent": True}}, "token: refused"),
        ({"fault": {"kind": "server", "line": "503", "permanent": False}}, None),
        ({"local_fault": "no space"}, "no space"),
        ({"problems": {"a.bin": "a.bin cannot be read"}}, "a.bin cannot be read"),
        ({"state": "done", "time": 1.0}, None),
        ({"state": "stopped", "time": 1.0}, "sign of life"),
    ],
)
def test_who_is_well(change: dict[str, object], reason: str | None) -> None:
    found = health_problems({**WELL, **change}, UploadSettings(), now=1000.0)
    assert (found == []) if reason is None else (len(found) == 1 and reason in found[0])


def test_no_status_is_not_well() -> None:
    assert len(health_problems(None, UploadSettings(), now=0.0)) == 1
