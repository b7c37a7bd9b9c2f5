"""The authors' experiment with its four data sets, in their layouts: only the model and the sizes are smaller."""

import json
from pathlib import Path

import pytest
from data.makers import make_coco, make_got10k, make_trackingnet, write_sequence
from runs import ROOT, completed, environment

RECIPE = ROOT / "seqtrack" / "config" / "experiments" / "seqtrack_b256.yaml"
SMALL = {
    "MODEL.ENCODER.TYPE": "vit_custom",
    "MODEL.ENCODER.PRETRAIN_TYPE": "scratch",
    "MODEL.ENCODER.PATCH_SIZE": 16,
    "DATA.SEARCH.SIZE": 64,
    "DATA.TEMPLATE.SIZE": 64,
    "TEST.SEARCH_SIZE": 64,
    "TEST.TEMPLATE_SIZE": 64,
    "DATA.TRAIN.SAMPLE_PER_EPOCH": 48,
}


@pytest.mark.run
def test_the_authors_mixture_trains_and_resumes(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    for name in ("book-1", "book-2", "coin-1"):
        write_sequence(data / "lasot" / name.rsplit("-", 1)[0] / name, 24)
    for make in (make_got10k, make_trackingnet, make_coco):
        make(data)
    for variables in ({}, {"PHASE": 2, "RESUME_EPOCH": 1}):
        env = environment(output, data, SMALL, CONFIG=RECIPE, EPOCHS=2, **variables)
        del env["DATASET"]  # a file names its own
        completed(env)
    sources = json.loads((output / "phase_1" / "dataset.json").read_text())["sources"]
    assert [one["name"] for one in sources] == ["LASOT", "GOT10K_VOTTRAIN", "COCO17", "TRACKINGNET"]
    assert json.loads((output / "comparison" / "certificate.json").read_text())["verdict"] == "identical"
