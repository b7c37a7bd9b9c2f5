#!/usr/bin/env python3
"""Make the pictures of README.md and docs/gallery.md, in docs/images: scripts/gallery.py [--work FOLDER] [NAME...]

Names are `plots`, `report`, `terminal`, `tensorboard` and `animation`; all by default. The folder (default: a temporary
one) keeps the runs that they show: both phases of the demo. What is already there is not trained again. All but plots
and animation are screenshots and need Chromium.
"""

import argparse
import contextlib
import fcntl
import html
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from seqtrack.data.annotations import read_boxes  # noqa: E402 - after the path
from seqtrack.tracking.video import draw_box  # noqa: E402

IMAGES, CLIP = ROOT / "docs" / "images", ROOT / "tests" / "assets" / "cc0_clip"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SEQTRACK = [sys.executable, "-m", "seqtrack"]
FRAME_MS = 70
VIEW = (60, 0, 540, 270)  # the part of the clip in which the person walks
SCREEN = """<meta charset="utf-8"><style>body{background:#0d1117;margin:0}
pre{color:#e6edf3;font:15px/1.35 'DejaVu Sans Mono',monospace;padding:14px 18px;margin:0;width:max-content}</style>"""


def seqtrack(work: Path, *words: str, **variables: str) -> None:
    """Run a command on the demo run in `work`, as scripts/local.sh would."""
    subprocess.run([*SEQTRACK, *words], env={**_environment(), **variables}, cwd=work, check=True)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    folders = {"OUTPUT_DIR": "output", "DATA_DIR": "data"}  # in `work`, where commands run
    return {**kept, **folders, "DEVICE": "cpu", "SEQTRACK_COMMAND": "scripts/local.sh", "PYTHONPATH": str(ROOT)}


def demo_run(work: Path) -> Path:
    """The output folder of both phases of the demo, evaluated and with its report."""
    output = work / "output"
    if not (output / "report.html").is_file():
        seqtrack(work, "train")
        seqtrack(work, "train", PHASE="2", RESUME_EPOCH="3")
        seqtrack(work, "evaluate")
        seqtrack(work, "report", "--html")
    return output


def plots(work: Path) -> None:
    """Every plot of the demo run."""
    for path in sorted(demo_run(work).rglob("*.png")):
        if "phase_2" not in path.parts:
            _save(Image.open(path), f"plot_{path.stem}", width=900)


def report(work: Path) -> None:
    """The report's first screen on a desktop and on a phone, and its evaluation."""
    page = (demo_run(work) / "report.html").as_uri()
    _save(screenshot(page, 1280, 900), "report_1280", width=1000)
    _save(screenshot(page, 390, 844), "report_390", width=390)
    _save(screenshot(page, 1280, 900, "--blink-settings=preferredColorScheme=0"), "report_dark", width=1000)


def tensorboard(work: Path) -> None:
    """Its curves and samples of both phases."""
    logs = work / "tensorboard"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    for phase in ("phase_1", "phase_2"):
        (logs / phase).symlink_to(demo_run(work) / phase / "logs" / "tensorboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", logs.name, "--port", str(port)]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, "DEVICE": "cpu"}, cwd=work)
    try:
        address = f"http://127.0.0.1:{port}/"
        while server.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address + "data/runs", timeout=5).close()
                break
            time.sleep(0.2)
        # "timeseries" draws its curves too late for a screenshot; smoothing would start again where phase 2 does.
        for name, tab in {"scalars": "scalars&_smoothingWeight=0", "images": "images"}.items():
            shown = screenshot(f"{address}?darkMode=false#{tab}", 1280, 900, "--virtual-time-budget=30000")
            _save(shown, f"tensorboard_{name}", width=1000)
    finally:
        server.terminate()
        server.wait()


def terminal(work: Path) -> None:
    """A short run on a terminal of 80 and of 120 columns: in the middle of an epoch, and its end."""
    demo_run(work)
    for columns in (80, 120):
        said = _on_terminal(work, columns)
        bars = [at for at, _ in enumerate(said) if said.startswith("\repoch 3/3", at)]
        screens = [Screen(columns, said[: bars[len(bars) // 2]]), Screen(columns, said)]
        text = "\n\n".join(html.escape("\n".join(lines)) for lines in (screens[0].lines, screens[1].lines[-5:]))
        page = work / f"terminal_{columns}.html"
        page.write_text(f"{SCREEN}<pre>$ scripts/local.sh train-phase1 --epochs 3\n{text}</pre>", encoding="utf-8")
        shown = screenshot(page.as_uri(), 36 + round(9.04 * columns), 28 + round(20.25 * (text.count("\n") + 2)))
        _save(shown, f"terminal_{columns}", width=shown.width)


class Screen:
    """Lines of a terminal after some output, which may return to the line's start and erase to its end."""

    def __init__(self, columns: int, said: str) -> None:
        self.lines, at = [""], 0
        for character in said.replace("\x1b[K", "").replace("\x1b[A", ""):
            if character == "\r":
                at = 0
            elif character == "\n" or at == columns:
                self.lines[-1] = self.lines[-1].rstrip()
                self.lines.append("")
                at = 0
            if character not in "\r\n":
                line = self.lines[-1]
                self.lines[-1] = line[:at].ljust(at) + character + line[at + 1 :]
                at += 1
        self.lines = [line for line in self.lines if line.strip()]


def _on_terminal(work: Path, columns: int) -> str:
    """What a short training run writes to a terminal."""
    shutil.rmtree(work / "short", ignore_errors=True)
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        variables = {"EPOCHS": "3", "OVERRIDES": "DATA.TRAIN.SAMPLE_PER_EPOCH 800", "OUTPUT_DIR": "short"}
        os.chdir(work)
        os.execvpe(SEQTRACK[0], [*SEQTRACK, "train"], {**_environment(), **variables})
    said = b""
    with contextlib.suppress(OSError):  # how the end of a terminal reads
        while part := os.read(terminal, 1 << 16):
            said += part
    os.waitpid(child, 0)
    return said.decode()


def screenshot(address: str, width: int, height: int, *options: str) -> Image.Image:
    """What a browser's window of that size shows.

    Raises:
        SystemExit: there is no browser.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"a picture of {address} needs a browser; install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
        words += [f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--screenshot={target}", address]
        subprocess.run([browser, *words], check=True, capture_output=True, timeout=300)
        return Image.open(target).copy()


def animation(work: Path) -> None:
    """Tracking in the clip by nano, which was not trained on it."""
    frames = CLIP / "person" / "person-1" / "img"
    first = read_boxes(CLIP / "person" / "person-1" / "groundtruth.txt")[0] - [1, 1, 0, 0]  # LaSOT counts from 1
    box = ",".join(map(str, first))
    video = work / "clip.mp4"
    seqtrack(work, "track", str(frames), "--checkpoint", "nano", "--box", box, "--no-video", "-o", str(video))
    found = read_boxes(video.with_suffix(".txt"))
    pictures = [
        Image.fromarray(draw_box(np.asarray(Image.open(path).convert("RGB")), box.tolist(), "")).crop(VIEW)
        for path, box in zip(sorted(frames.iterdir()), found, strict=True)
    ]
    options = {"save_all": True, "append_images": pictures[1:], "duration": FRAME_MS, "loop": 0}
    pictures[0].save(IMAGES / "tracking.webp", quality=55, method=6, **options)


def _save(picture: Image.Image, name: str, *, width: int) -> None:
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.convert("RGB").save(IMAGES / f"{name}.webp", quality=72, method=6)


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()


def main() -> int:
    """Make the pictures and print their sizes."""
    makers: dict[str, Callable[[Path], None]] = {
        "plots": plots, "report": report, "terminal": terminal, "tensorboard": tensorboard, "animation": animation
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(makers)}")
    parser.add_argument("--work", type=Path, help="folder that keeps the runs")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in makers]:
        parser.error(f"no such picture: {', '.join(unknown)}; expected {', '.join(makers)}")
    IMAGES.mkdir(exist_ok=True)
    with _folder(args.work) as work:
        for name in args.names or makers:
            makers[name](work)
    sizes = {path.name: path.stat().st_size for path in sorted(IMAGES.glob("*.webp"))}
    print(*(f"{size / 1e3:7.1f} kB  {name}" for name, size in sizes.items()), sep="\n")
    print(f"{sum(sizes.values()) / 1e6:.2f} MB in {IMAGES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
