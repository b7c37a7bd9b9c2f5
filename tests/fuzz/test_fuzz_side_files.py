"""Damaged files of a run: whatever they hold, a command ends with 0, 1 or 2 and without a traceback."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import environment

from fuzz.mutations import cases, counts
from seqtrack.cli import main
from seqtrack.config.environment import configure
from seqtrack.errors import RunError, UserError
from seqtrack.runtime.metrics_log import RunLog
from seqtrack.training.resume import find_run

FILES = [f"phase_1/{name}" for name in ("run.json", "environment.json", "dataset.json", "logs/metrics.jsonl")]
STEPS_PER_EPOCH = 6


@pytest.fixture(scope="module")
def output(resumed: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two phases with a certificate, and the environment of the commands that read them."""
    folder = tmp_path_factory.mktemp("fuzz")
    output = folder / "output"
    shutil.copytree(resumed, output)
    (folder / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(output, demo_data).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        assert main(["verify"]) == 0
        yield output


def verify(output: Path) -> int:
    # No plots: a file is in the way of their folder.
    return main(["verify", "-o", str(output.parent / "file" / "x")])


def report(output: Path) -> int:
    return main(["report", "--html"])


def start_again(output: Path) -> int:
    """What a start does with these files before it trains."""
    settings, config = configure(os.environ)
    digest = json.loads((output / "phase_2" / "dataset.json").read_text())["digest"]
    try:
        start = find_run(settings, config, digest, STEPS_PER_EPOCH)
        RunLog(output / "phase_1" / "logs", phase=1, epochs=3, resume_step=start.step, writes=True).close()
    except UserError:
        return 2
    except RunError:
        return 1
    return 0


@counts(12, 1200)
@pytest.mark.parametrize("name", [*FILES, "comparison/certificate.json"])
def test_a_damaged_file_ends_with_a_designed_exit_code(name: str, count: int, output: Path) -> None:
    path = output / name
    original = path.read_bytes()
    commands: list[tuple[int, Callable[[Path], int]]] = [(3, start_again), (4, verify), (12, report)]
    codes: dict[str, set[int]] = {}
    for number, data in cases([original], count, is_json=name.endswith(".json")):
        path.write_bytes(data)
        try:
            for every, command in commands:
                if number % every == 0:
                    path.write_bytes(data)
                    codes.setdefault(command.__name__, set()).add(command(output))
        except Exception as error:
            raise AssertionError(f"input {number} of {name}: {error!r}: {data[:300]!r}") from error
        finally:
            path.write_bytes(original)
    assert set().union(*codes.values()) <= {0, 1, 2}
    if name == "phase_1/run.json":
        assert 1 in codes["verify"] and 2 in codes["start_again"] and 2 in codes["report"]
