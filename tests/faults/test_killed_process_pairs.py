"""Two processes of one run, one of them struck at a random moment, again and again: the long form, for the night.

A launcher ends what is left when a process dies. There is none here, for starting one takes longer than these runs, so
the test does what it would where the two had not met yet; once they have, the other must end by itself.
"""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from runs import Running, assert_same_run, environment

from faults.process_pairs import ranks_of, together

KEYS = {"TRAIN.SAVE_INTERVAL_S": "0.02", "DATA.TRAIN.SAMPLE_PER_EPOCH": "248"}
STRIKES = 100


def _has_met(main: Running) -> bool:
    """Whether the processes have agreed where the run starts."""
    return "starts from scratch" in main.said() or "resumes after" in main.said()


def _strike(env: dict[str, str], moments: random.Random, number: int, longest_s: float) -> str:
    """Start two, wait a drawn time, send one of them a signal. Returns how that ended.

    The time counts from when they have met, for most of their life on such small data is the start; every fifth time it
    counts from the start.
    """
    with ranks_of(env, 2) as pair:
        struck, other = moments.sample(pair, 2)
        if moments.random() < 0.8:
            pair[0].until(lambda: _has_met(pair[0]))
        pair[0].process.join(moments.uniform(0, longest_s))
        struck.signal(number)
        if number == signal.SIGKILL or not _has_met(pair[0]):
            struck.process.join(1.0)
        if not struck.process.is_alive() and not _has_met(pair[0]):
            other.signal(signal.SIGKILL)
        began = time.monotonic()
        codes = sorted({struck.end().code, other.end().code})
        assert time.monotonic() - began < 10, f"it took more than 10 s to end: {pair[0].said()}"
        said = pair[0].said() + pair[1].said()
    assert "Traceback" not in said, said
    if codes == [0]:
        return "complete"
    if number == signal.SIGTERM and codes == [75]:
        return "both saved and stopped"
    # One that has finished cannot be struck any more, and its end is still right; -9 is this test's, as said above.
    assert set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, 0, 1, 75}, (codes, said)
    assert 1 not in codes or "another process of this run ended" in said, (codes, said)
    return "the other ended too" if 1 in codes else "before they met, or after the end"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pair_of_which_one_is_struck_at_a_hundred_random_moments_ends_as_an_uninterrupted_pair(
    number: signal.Signals, demo_data: Path, tmp_path: Path
) -> None:
    with ranks_of(environment(tmp_path / "uninterrupted", demo_data, KEYS), 2) as pair:
        assert pair[0].until(lambda: _has_met(pair[0]))
        began = time.monotonic()
        assert [rank.end().code for rank in pair] == [0, 0]
    longest_s = 0.5 * (time.monotonic() - began)
    moments, outcomes, runs, strikes = random.Random(int(number)), Counter[str](), 0, 0
    while strikes < STRIKES:
        output = tmp_path / f"run{runs}"
        env = environment(output, demo_data, KEYS)
        outcome = ""
        while outcome != "complete" and strikes < STRIKES:
            outcome = _strike(env, moments, number, longest_s)
            outcomes[outcome] += 1
            strikes += outcome != "complete"
        together(env, 2)
        assert_same_run(output / "phase_1", tmp_path / "uninterrupted" / "phase_1")
        runs += 1
    print(f"{strikes} times signal {int(number)} to one of two over {runs} runs, each identical: {outcomes}")
