"""Benchmarks: `scripts/bench.py data|step|train|track|checkpoint|upload --json`; the last line is one JSON object."""

import argparse
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

NAMES = ("data", "step", "train", "track", "checkpoint", "upload")


def main() -> int:
    """Run the chosen benchmark and print its result."""
    chooser = argparse.ArgumentParser(description=__doc__)
    chooser.add_argument("name", choices=NAMES)
    name = chooser.parse_args(sys.argv[1:2]).name
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
