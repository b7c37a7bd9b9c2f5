"""The model repo's README.md, from measured files only: what was trained, how it went, how to load it, the digests.

Reads manifests, metrics, configuration and verdict of an output folder; needs no torch. A number that was not
measured does not appear.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from seqtrack.checkpoints.files import DamagedFileError, read_json_object
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.engine.log import read_metrics
from seqtrack.errors import UserError

_HUB_DATASETS = {"LASOT": "l-lt/LaSOT"}


def model_card(output_dir: Path, *, repo: str | None = None) -> str:
    """The text of README.md.

    Args:
        repo: "owner/name", for the commands that load from there; None leaves a place-holder.

    Raises:
        UserError: there is no checkpoint to speak of.
    """
    phases = [folder for folder in sorted(output_dir.glob("phase_*")) if folder.is_dir()]
    runs = [(folder, list_checkpoints(folder / "checkpoints", kinds=("epoch",))) for folder in phases]
    runs = [(folder, manifests) for folder, manifests in runs if manifests]
    if not runs:
        raise UserError(f"{output_dir} holds no checkpoint of a finished epoch; a card needs one")
    sources = _sources(runs)
    blocks = [
        _front_matter(sources),
        "# SeqTrack checkpoints",
        _opening(sources, runs),
        *[_phase(output_dir, folder, manifests) for folder, manifests in runs],
        _comparison(output_dir),
        _loading(repo or "OWNER/NAME", *runs[-1]),
        _digests(runs),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _json(path: Path) -> dict[str, Any]:
    """A file's object; {} if it is missing or unreadable, since then nothing was measured."""
    try:
        return read_json_object(path)
    except (DamagedFileError, FileNotFoundError):
        return {}


def _sources(runs: Sequence[tuple[Path, list[Manifest]]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for folder, _ in runs:
        for source in _json(folder / "dataset.json").get("sources", []):
            found.setdefault(str(source.get("name")), source)
    return list(found.values())


def _front_matter(sources: Sequence[dict[str, Any]]) -> str:
    datasets = [
        _HUB_DATASETS[name] for source in sources if (name := str(source.get("name", "")).upper()) in _HUB_DATASETS
    ]
    values: dict[str, Any] = {
        "license": "mit",
        "library_name": "seqtrack",
        "tags": ["visual-object-tracking", "single-object-tracking", "seqtrack", "safetensors", "reproducible"],
    }
    if datasets:
        values["datasets"] = datasets
    if any(source.get("synthetic") for source in sources):
        values["tags"].append("synthetic-data")
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _opening(sources: Sequence[dict[str, Any]], runs: Sequence[tuple[Path, list[Manifest]]]) -> str:
    lines = [
        "SeqTrack (Chen et al., CVPR 2023) trained by a run that can be repeated bit for bit; every checkpoint is here."
    ]
    for source in sources:
        classes = ", ".join(sorted(source.get("classes", {})))
        told = f"{source.get('sequences', '?')} sequences, {source.get('frames', '?')} frames"
        lines.append(f"- Data: {source.get('name')} ({told}; classes: {classes or 'not recorded'})")
        if source.get("synthetic"):
            lines.append(
                "- **The data are synthetic**, drawn by code: these weights show that training works, no more."
            )
    newest = runs[-1][1][-1]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(newest.versions.items()))
    if newest.device:
        lines.append(f"- Device: {newest.device}")
    if versions:
        lines.append(f"- Versions: {versions}")
    return lines[0] + "\n\n" + "\n".join(lines[1:]) if len(lines) > 1 else lines[0]


def _phase(output_dir: Path, folder: Path, manifests: Sequence[Manifest]) -> str:
    """A phase's table of epochs, with its plots."""
    speeds = _speeds(folder)
    rows = [
        f"| {m.epoch} | {m.step} | {_number(m.loss)} | {_number(m.iou)} | {_number(speeds.get(m.epoch), '.1f')} "
        f"| {m.bytes / 1e6:.1f} | `{m.file}` |"
        for m in manifests
    ]
    title = f"## {folder.name.replace('_', ' ').capitalize()}"
    head = "| epoch | step | loss | IoU | samples/s | MB | file |\n|---:|---:|---:|---:|---:|---:|---|"
    plots = [
        f"![{plot.stem.replace('_', ' ')}]({plot.relative_to(output_dir).as_posix().replace(' ', '%20')})"
        for plot in sorted((folder / "plots").glob("*.png"))
    ]
    return "\n\n".join(block for block in (title, "\n".join([head, *rows]), "\n".join(plots)) if block)


def _speeds(folder: Path) -> dict[int, float]:
    """Samples a second by epoch, from the run's own record."""
    return {
        int(record["epoch"]): float(record["samples_per_s"])
        for record in read_metrics(folder / "logs" / "metrics.jsonl")
        if record.get("type") == "epoch" and isinstance(record.get("samples_per_s"), (int, float))
    }


def _number(value: float | None, form: str = ".5f") -> str:
    return "–" if value is None else format(value, form)


def _comparison(output_dir: Path) -> str:
    """The verdict on the resumed run, if there is one."""
    folder = output_dir / "comparison"
    verdict = _json(folder / "certificate.json").get("verdict")
    plots = [f"![{plot.stem.replace('_', ' ')}](comparison/{plot.name})" for plot in sorted(folder.glob("*.png"))]
    if verdict is None and not plots:
        return ""
    told = f"Phase 2 was resumed from a checkpoint of phase 1 and trained to the end. Verdict: **{verdict}**."
    return "\n\n".join(["## Resumed and uncut run", *([told] if verdict is not None else []), *plots])


def _loading(repo: str, folder: Path, manifests: Sequence[Manifest]) -> str:
    first, newest = manifests[0], manifests[-1]
    number = folder.name.removeprefix("phase_")
    path = f"{folder.name}/checkpoints/{newest.file}"
    return f"""## How to load

The files are safetensors: no pickle, nothing runs when they are read. The model's weights stand under `model/`, the
rest is what training needs to go on (optimizer, schedule, random states).

```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

tensors = load_file(hf_hub_download("{repo}", "{path}"))
weights = {{name[len("model/"):]: tensor for name, tensor in tensors.items() if name.startswith("model/")}}
```

With the training system itself: `HF_REPO={repo} seqtrack hub download --phase {number} --epoch {newest.epoch}` brings a
checkpoint and checks it against its manifest; `HF_REPO={repo} PHASE=2 RESUME_EPOCH={first.epoch} seqtrack train` goes
on from epoch {first.epoch}."""


def _digests(runs: Sequence[tuple[Path, list[Manifest]]]) -> str:
    lines = ["## Digests", "", "| checkpoint | sha256 of the file | sha256 of the weights |", "|---|---|---|"]
    for folder, manifests in runs:
        lines += [f"| {folder.name} epoch {m.epoch} | `{m.sha256}` | `{m.weights_sha256}` |" for m in manifests]
    newest = runs[-1][1][-1]
    lines += ["", f"- Configuration: `{newest.config_digest or 'not recorded'}`"]
    lines += [f"- Data: `{newest.data_digest or 'not recorded'}`"]
    return "\n".join(lines)
