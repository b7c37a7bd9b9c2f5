"""What these tests share: demo data, one undisturbed run, each made once a session; a Hub, an output folder, a disk."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import demo_data, uninterrupted
from uploads.harness import hub, inline, output

__all__ = ["demo_data", "hub", "inline", "output", "uninterrupted"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
