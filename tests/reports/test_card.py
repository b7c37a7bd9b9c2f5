"""The model card has everything that was measured, and nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqtrack.errors import UserError
from seqtrack.reports.card import model_card


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---")[1]))


def test_it_has_the_measured_numbers_plots_and_digests(finished: Path) -> None:
    text = model_card(finished, repo="me/run")
    manifests = [json.loads(path.read_text()) for path in sorted(finished.glob("phase_*/checkpoints/*.json"))]
    assert len(manifests) == 5
    for one in manifests:
        row = f"| {one['epoch']} | {one['step']} | {one['loss']:.5f} | {one['iou']:.5f} | "
        assert row in text and f"| `{one['file']}` |" in text
        assert one["sha256"] in text and one["weights_sha256"] in text
    assert manifests[0]["config_digest"] in text and manifests[0]["data_digest"] in text
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert "phase_1/plots/phase_1_loss.png" in links and all((finished / link).is_file() for link in links)
    assert 'hf_hub_download("me/run", "phase_2/checkpoints/SEQTRACK_ep0003.safetensors")' in text
    assert "**identical**" in text
    assert front_matter(text)["tags"].count("synthetic-data") == 1 and "datasets" not in front_matter(text)


def test_what_was_not_measured_is_not_in_it_and_known_data_sets_are_linked(finished_run: Path) -> None:
    shutil.rmtree(finished_run / "phase_2")
    shutil.rmtree(finished_run / "comparison")
    (finished_run / "phase_1" / "logs" / "metrics.jsonl").write_text('{"cut off by a kill')
    path = finished_run / "phase_1" / "dataset.json"
    values = json.loads(path.read_text())
    values["sources"][0] |= {"name": "LASOT", "synthetic": False}
    path.write_text(json.dumps(values))
    text = model_card(finished_run)
    rows = [line for line in text.splitlines() if "`SEQTRACK_ep" in line]
    assert len(rows) == 3 and all(" | – | " in row for row in rows), "no speed was measured"
    assert "**identical**" not in text and "phase_2" not in text
    head = front_matter(text)
    assert head["datasets"] == ["l-lt/LaSOT"] and "synthetic-data" not in head["tags"]


def test_without_a_checkpoint_there_is_no_card(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError) as refusal:
            model_card(tmp_path)
        assert refusal.value.code == "report.nothing"
        (tmp_path / "phase_1").mkdir(exist_ok=True)
