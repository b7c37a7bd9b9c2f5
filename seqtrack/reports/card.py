"""The model repo's README.md, from measured files only: what was trained, the results, how to load it, the digests.

The prose is in `templates/card.md.j2`. Needs no torch.
"""

from pathlib import Path

import yaml

from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.tables import COLUMNS, HEADINGS
from seqtrack.markdown import Markdown, image
from seqtrack.reports.rendering import render_markdown
from seqtrack.reports.run_files import OutputFiles, RunFiles

_HUB_DATASETS = {"LASOT": "l-lt/LaSOT"}


def model_card(output_dir: Path, *, repo: str | None = None) -> str:
    """The text of README.md.

    Args:
        repo: "owner/name", for the commands that load from there; None leaves a placeholder.

    Raises:
        UserError: no checkpoint of a finished epoch, or an invalid file.
    """
    files = OutputFiles(output_dir)
    runs = [phase for phase in files.phases if phase.manifests]
    if not runs:
        raise UserError(f"{output_dir} holds no checkpoint of a finished epoch; a card needs one", "report.nothing")
    sources = list({one.name: one for run in reversed(runs) if run.dataset for one in run.dataset.sources}.values())
    # The metadata that the Hub reads.
    tags = ["visual-object-tracking", "single-object-tracking", "seqtrack", "safetensors", "reproducible"]
    tags += ["synthetic-data"] if any(source.synthetic for source in sources) else []
    # The Hub has no task for tracking; this is the nearest of those that it knows.
    metadata: dict[str, object] = {"license": "mit", "library_name": "seqtrack", "pipeline_tag": "object-detection"}
    metadata["tags"] = tags
    if datasets := [_HUB_DATASETS[one.name.upper()] for one in sources if one.name.upper() in _HUB_DATASETS]:
        metadata["datasets"] = datasets
    evaluated = next((run for run in reversed(runs) if run.last_result), None)
    if evaluated is not None:
        metadata["model-index"] = [_results(evaluated)]
    return render_markdown(
        "card.md.j2",
        front_matter=Markdown(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)),
        sources=sources,
        runs=runs,
        files=files,
        evaluated=evaluated,
        headings={key: HEADINGS[key] for key in COLUMNS},
        repo=Markdown(repo or "OWNER/NAME"),
        images=lambda paths: Markdown(
            "\n".join(image(path.relative_to(output_dir), path.stem.replace("_", " ")) for path in paths)
        ),
    )


def _results(run: RunFiles) -> dict[str, object]:
    """An entry of the Hub's model-index: the metrics of the last checkpoint that was evaluated."""
    assert run.evaluation and run.last_result
    conditions, mean = run.evaluation.conditions, run.last_result.mean
    measured = {name: value for name in METRICS if (value := mean.get(name)) is not None}
    metrics = [
        {"type": name, "name": f"{METRICS[name].heading} (percent)", "value": round(value, 3)}
        for name, value in measured.items()
    ]
    data = f"{conditions.get('dataset') or 'annotations'}"
    dataset = {"type": data.lower(), "name": f"{data} (synthetic)" if conditions.get("synthetic") else data}
    dataset["split"] = str(conditions.get("split") or "test")
    task = {"type": "visual-object-tracking", "name": "Visual object tracking"}
    return {"name": "SeqTrack", "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
