"""The reproducibility guarantee between two runs. Needs no torch: `verify` derives it again from run.json."""

from collections.abc import Mapping


def guarantee(ours: Mapping[str, object], theirs: Mapping[str, object]) -> tuple[str, list[str]]:
    """The reproducibility guarantee between two runs by their fingerprints: "bitwise" or "same_samples", and why."""
    pairs = {key: (theirs.get(key), ours.get(key)) for key in sorted({*ours, *theirs})}
    differences = [f"{key}: {then!r} then, {now!r} now" for key, (then, now) in pairs.items() if then != now]
    if ours.get("compile"):
        differences.append("TRAIN.COMPILE: the compiler measures which kernels are fastest, and may choose others")
    if not ours.get("deterministic"):
        differences.append("TRAIN.DETERMINISTIC is off: kernels may add in any order")
    return ("same_samples" if differences else "bitwise"), differences
