"""Benchmarks, `bench.py NAME --json`; the last line is one JSON object."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

# The allocator's settings of docker/entrypoint. Freed activations are kept and reused; otherwise each step requests
# about 140,000 new pages, which takes 0.2 to 3 s. The last one is torch's own: large tensors start on pages of 2 MiB,
# which avoids fragmentation.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def main() -> int:
    """Run the chosen benchmark and print its result."""
    chooser = argparse.ArgumentParser(description=__doc__)
    chooser.add_argument("name", choices=("data", "step", "shards", "track", "onnx", "parity", "checkpoint", "upload"))
    name = chooser.parse_args(sys.argv[1:2]).name
    on_its_own_settings = "LD_PRELOAD" in os.environ or {"--plain-malloc", "cuda"} & set(sys.argv)
    if name in ("step", "shards", "checkpoint") and not on_its_own_settings and not set(ALLOCATOR) <= set(os.environ):
        # glibc reads its settings once, at the start of a process.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ALLOCATOR, **os.environ})
    module = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(prog=f"bench.py {name}", description=module.__doc__)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    module.add_arguments(parser)
    args = parser.parse_args(sys.argv[2:])
    result = module.run(args)
    if not args.json:
        print(json.dumps(result, indent=2))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
