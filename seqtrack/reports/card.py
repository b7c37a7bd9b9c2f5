"""The model repo's README.md, from measured files only: what was trained, how it went, how to load it, the digests.

Reads manifests, metrics, configuration and verdict of an output folder; needs no torch. A number that was not
measured does not appear.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from seqtrack.checkpoints.side_files import SourceRecord
from seqtrack.checkpoints.store import Manifest
from seqtrack.errors import UserError
from seqtrack.markdown import code, escape, image, number, table
from seqtrack.reports.run_files import OutputFiles, RunFiles, read_output

_HUB_DATASETS = {"LASOT": "l-lt/LaSOT"}


def model_card(output_dir: Path, *, repo: str | None = None) -> str:
    """The text of README.md.

    Args:
        repo: "owner/name", for the commands that load from there; None leaves a place-holder.

    Raises:
        UserError: there is no checkpoint to speak of, or a damaged file.
    """
    files = read_output(output_dir)
    runs = [phase for phase in files.phases if phase.manifests]
    if not runs:
        raise UserError(f"{output_dir} holds no checkpoint of a finished epoch; a card needs one", "report.nothing")
    sources = list({one.name: one for run in reversed(runs) if run.dataset for one in run.dataset.sources}.values())
    blocks = [
        _front_matter(sources),
        "# SeqTrack checkpoints",
        _opening(sources, runs),
        *[_phase(output_dir, run) for run in runs],
        _comparison(files),
        _loading(repo or "OWNER/NAME", runs[-1]),
        _digests(runs),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _front_matter(sources: Sequence[SourceRecord]) -> str:
    datasets = [_HUB_DATASETS[one.name.upper()] for one in sources if one.name.upper() in _HUB_DATASETS]
    values: dict[str, Any] = {
        "license": "mit",
        "library_name": "seqtrack",
        "tags": ["visual-object-tracking", "single-object-tracking", "seqtrack", "safetensors", "reproducible"],
    }
    if datasets:
        values["datasets"] = datasets
    if any(source.synthetic for source in sources):
        values["tags"].append("synthetic-data")
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _opening(sources: Sequence[SourceRecord], runs: Sequence[RunFiles]) -> str:
    lines = []
    for source in sources:
        told = f"{source.sequences} sequences, {source.frames} frames"
        classes = ", ".join(sorted(source.classes))
        lines.append(f"- Data: {escape(source.name)} ({told}; classes: {escape(classes or 'not recorded')})")
        if source.synthetic:
            lines.append(
                "- **The data are synthetic**, drawn by code: these weights show that training works, no more."
            )
    newest = runs[-1].manifests[-1]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(newest.versions.items()))
    lines += [f"- {name}: {escape(one)}" for name, one in (("Device", newest.device), ("Versions", versions)) if one]
    opening = (
        "SeqTrack (Chen et al., CVPR 2023) trained by a run that can be repeated bit for bit; every checkpoint is here."
    )
    return "\n\n".join([opening, *(["\n".join(lines)] if lines else [])])


def _phase(output_dir: Path, run: RunFiles) -> str:
    """A phase's table of epochs, with its plots."""
    speeds = {record.epoch: record.samples_per_s for record in run.epochs}
    rows = [
        [m.epoch, m.step, number(m.loss, 5), number(m.iou, 5), number(speeds.get(m.epoch), 1), *_file(m)]
        for m in run.manifests
    ]
    epochs = table(["epoch", "step", "loss", "IoU", "samples/s", "MB", "file"], rows)
    plots = [image(plot.relative_to(output_dir), plot.stem.replace("_", " ")) for plot in run.plots]
    title = f"## {run.name.replace('_', ' ').capitalize()}"
    return "\n\n".join([title, epochs.rstrip("\n"), *(["\n".join(plots)] if plots else [])])


def _file(manifest: Manifest) -> tuple[str, str]:
    return f"{manifest.bytes / 1e6:.1f}", code(manifest.file)


def _comparison(files: OutputFiles) -> str:
    """The verdict on the resumed run, if there is one."""
    plots = [image(f"comparison/{plot.name}", plot.stem.replace("_", " ")) for plot in files.comparison_plots]
    if files.certificate is None and not plots:
        return ""
    told = "Phase 2 was resumed from a checkpoint of phase 1 and trained to the end."
    verdict = [f"{told} Verdict: **{files.certificate.verdict}**."] if files.certificate else []
    return "\n\n".join(["## Resumed and uninterrupted run", *verdict, *plots])


def _loading(repo: str, run: RunFiles) -> str:
    first, newest = run.manifests[0], run.manifests[-1]
    phase, path = run.name[-1], f"{run.name}/checkpoints/{newest.file}"
    return f"""## How to load

The files are safetensors: no pickle, nothing runs when they are read. The model's weights are under `model/`, the
rest is what training needs to continue (optimizer, schedule, random states).

```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

tensors = load_file(hf_hub_download("{repo}", "{path}"))
weights = {{name[len("model/"):]: tensor for name, tensor in tensors.items() if name.startswith("model/")}}
```

With the training system itself: `HF_REPO={repo} seqtrack hub download --phase {phase} --epoch {newest.epoch}` brings a
checkpoint and checks it against its manifest; `HF_REPO={repo} PHASE=2 RESUME_EPOCH={first.epoch} seqtrack train` goes
on from epoch {first.epoch}."""


def _digests(runs: Sequence[RunFiles]) -> str:
    rows = [
        [f"{run.name} epoch {one.epoch}", code(one.sha256), code(one.weights_sha256)]
        for run in runs
        for one in run.manifests
    ]
    newest = runs[-1].manifests[-1]
    return "\n".join(
        [
            "## Digests\n",
            table(["checkpoint", "sha256 of the file", "sha256 of the weights"], rows, texts=3),
            f"- Configuration: {code(newest.config_digest or 'not recorded')}",
            f"- Data: {code(newest.data_digest or 'not recorded')}",
        ]
    )
