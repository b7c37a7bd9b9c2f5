#!/usr/bin/env python3
"""The trainer's cost of redrawing plots: `bench_plots.py 2000 60000 600000` prints one JSON object per length.

CPU seconds, not wall time, of this process and of the plotting process. `--before` measures the implementation until
commit 5b6aff4, in whose checkout it must run: the trainer itself read metrics.jsonl and plotted all points.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))  # the checkout that is measured

RECORD = {
    "type": "interval", "phase": 1, "epoch": 1, "step": 1, "sample": 1, "samples": 27040, "interval_samples": 50,
    "loss": 5.123456789012345, "iou": 0.1234567890123456, "interval_loss": 5.2, "interval_iou": 0.12,
    "lr": [0.0001, 1e-05], "grad_norm": 1.2345678901234567, "time_s": 1.2345, "elapsed_s": 1234.5, "eta_s": 12.3,
    "samples_per_s": 40.123456, "data_wait_s": 0.01234, "data_wait_share": 0.0123, "skipped_steps": 0,
}  # fmt: skip
PER_EPOCH = 541


def records(count: int) -> list[dict[str, object]]:
    made = []
    for number in range(count):
        epoch, place = divmod(number, PER_EPOCH)
        made.append({**RECORD, "epoch": epoch + 1, "step": number + 1, "sample": min(27040, 50 * (place + 1))})
    return made


def before(folder: Path, count: int) -> dict[str, float]:
    from seqtrack.reports.plots import plot_phase

    (folder / "logs").mkdir()
    path = folder / "logs" / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(count)))
    begun = time.process_time()
    plot_phase(folder)
    return {"parsed_bytes": 3 * path.stat().st_size, "trainer_cpu_s": time.process_time() - begun}


def now(folder: Path, count: int) -> dict[str, float]:
    from seqtrack.checkpoints.side_files import IntervalRecord
    from seqtrack.reports.plots import PhasePlots
    from seqtrack.runtime.curves import Curves

    made = [IntervalRecord.model_validate(record) for record in records(count)]
    begun = time.process_time()
    plots = PhasePlots(folder, Curves(made), interval_s=0.0)
    kept = time.process_time()
    plots.redraw()
    given = time.process_time()
    assert plots._child is not None and plots._child.wait() == 0
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "parsed_bytes": len(json.dumps(plots.curves.to_json())),
        "trainer_cpu_s": given - kept,
        "keeping_cpu_us_per_record": 1e6 * (kept - begun) / count,
        "child_cpu_s": child.ru_utime + child.ru_stime,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("records", type=int, nargs="+")
    args = parser.parse_args()
    for count in args.records:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "phase_1"
            folder.mkdir()
            print(json.dumps({"records": count, **(before if args.before else now)(folder, count)}))


if __name__ == "__main__":
    main()
