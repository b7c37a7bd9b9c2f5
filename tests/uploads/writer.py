"""Writes files as training does, over some seconds: run by the soak as a process of its own."""

import random
import sys
import time
from pathlib import Path

from uploads.harness import checkpoint, content, put


def main(output: Path, number: int, largest: int, seconds: float) -> None:
    """`number` files from 1 KB to `largest` bytes, sizes spread evenly by their logarithm; every fifth a checkpoint."""
    chance = random.Random(11)
    for index in range(number):
        size = int(1000 * (largest / 1000) ** chance.random())
        if index % 5 == 0:
            checkpoint(output, index, size=size)
        else:
            put(output / "phase_1" / "files" / f"{index:04d}.bin", content(size, index))
        time.sleep(seconds / number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
