"""Hours without the Hub, by a clock of our own whose wall time jumps: run as a process, prints what happened as JSON.

The real client, the real server, the real journal; only the clock and the process boundary are replaced, because hours
of waiting and hundreds of processes would take as long as they take.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uploads.harness import REPO, checkpoint
from uploads.hub_server import Hub

from seqtrack.uploads.backoff import Clock
from seqtrack.uploads.child import perform
from seqtrack.uploads.client import Outcome
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.settings import TargetSettings, UploadSettings
from seqtrack.uploads.uploader import Uploader


class DayClock:
    """Sleeping moves it; nothing else does. `skew` is how far the wall clock was set by hand, in seconds."""

    def __init__(self) -> None:
        self.now, self.skew = 1_000_000.0, 0.0
        self.alarms: list[tuple[float, Callable[[], None]]] = []

    def set_wall(self, skew: float) -> None:
        self.skew = skew

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)
        while self.alarms and self.alarms[0][0] <= self.now:
            self.alarms.pop(0)[1]()


class InlineRunner:
    """Carries out orders in this process."""

    def __init__(self, clock: DayClock) -> None:
        self.clock, self.tried_at = clock, [clock.now]

    def run(self, order: dict[str, Any], *, deadline_s: float, on_event: Any, tick: Any) -> Outcome:
        self.tried_at.append(self.clock.now)
        events: list[dict[str, Any]] = []
        perform(order, events.append)
        for event in events[:-1]:
            on_event(event)
        last = events[-1]
        if last["event"] == "done":
            return Outcome(done=last)
        return Outcome(fault=Fault(**{name: value for name, value in last.items() if name != "event"}))


def main(folder: Path, hours: int) -> None:
    """One checkpoint per hour while the server is down; then it comes back."""
    hub = Hub().start()
    port, output, time = hub.port, folder / "output", DayClock()
    os.environ |= {"HF_TOKEN": "hf_writewritewritewrite"}
    hub.stop()
    clock = Clock(monotonic=lambda: time.now, wall=lambda: time.now + time.skew, sleep=time.sleep)
    runner = InlineRunner(time)
    target = TargetSettings("huggingface", REPO, hub.endpoint)
    for hour in range(hours):
        time.alarms.append((time.now + 3600.0 * hour, lambda e=hour + 1: checkpoint(output, e) and None))
    for hour, skew in ((0.25 * hours, -900_000.0), (0.5 * hours, 5_000_000.0), (hours - 0.1, 0.0)):
        time.alarms.append((time.now + 3600.0 * hour, lambda s=skew: time.set_wall(s)))
    back = time.now + 3600.0 * hours
    time.alarms.append((back, lambda: hub.start(port) and None))
    time.alarms.sort(key=lambda alarm: alarm[0])
    # Small batches, so that the order of catching up can be seen.
    settings = UploadSettings(batch_mb=0.06, poll_s=60.0, settle_s=120.0, start_grace_s=0.0, request_tries=1)
    with Uploader(output, target, settings, clock=clock, runner=runner, rng=random.Random(7)) as uploader:
        while time.now < back + 7200.0 and len(hub.repos.get(REPO, Repo()).commits) < 2 + hours // 2:
            wait = uploader.step()
            clock.sleep(min(max(wait, 0.0), settings.poll_s))
        oldest = uploader.oldest_age_s()
    order = [path for _, changed, _ in hub.repos[REPO].commits for path in changed if path.endswith(".safetensors")]
    gaps = [b - a for a, b in zip(runner.tried_at, runner.tried_at[1:], strict=False) if b < back]
    first = next(moment for moment in runner.tried_at if moment >= back) - back
    report = {"tries": len(gaps), "longest_gap_s": max(gaps), "first_try_after_s": first, "order": order}
    print(
        json.dumps({**report, "oldest_age_s": oldest, "violations": hub.violations, "puts": sorted(hub.puts.values())})
    )


class Repo:
    """Stands for a repo that is not there yet."""

    commits = ()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
