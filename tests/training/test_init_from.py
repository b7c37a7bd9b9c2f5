"""TRAIN.INIT_FROM: a run that begins with another run's weights, and can be proved like any other."""

from pathlib import Path

import pytest
from runs import Ended, completed, environment, epochs, start, train

from seqtrack.reports.consistency import inconsistencies


def audited(output: Path, data: Path, **keys: object) -> Ended:
    with start(environment(output, data, keys), "audit", "phase_1", "--epochs", "1") as running:
        return running.end()


def test_a_run_begins_with_the_weights_of_a_checkpoint_or_of_the_authors_file_of_it(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    source = epochs(uninterrupted / "phase_1")[2]
    exported, copy = tmp_path / "weights.pth.tar", tmp_path / "copy"
    env = environment(tmp_path, demo_data)
    with start(env, "export", str(source.path), "-o", str(exported)) as running:
        assert running.end().code == 0
    for output, place in ((tmp_path / "ours", source.path), (copy, exported)):
        completed(environment(output, demo_data, {"TRAIN.INIT_FROM": place}, EPOCHS=2))
    ours, theirs = epochs(tmp_path / "ours" / "phase_1"), epochs(copy / "phase_1")
    assert [one.init_sha256 for one in ours.values()] == [source.weights_sha256] * 2
    assert [one.sha256 for one in ours.values()] == [one.sha256 for one in theirs.values()]
    assert ours[1].weights_sha256 != epochs(uninterrupted / "phase_1")[1].weights_sha256
    assert inconsistencies(copy / "phase_1") == []
    assert audited(copy, demo_data).said.splitlines()[-1] == "confirmed"

    # A second phase carries the digest on, without the file.
    exported.unlink()
    completed(environment(copy, demo_data, {"TRAIN.INIT_FROM": exported}, PHASE=2, RESUME_EPOCH=1, EPOCHS=2))
    assert epochs(copy / "phase_2")[2].path.read_bytes() == ours[2].path.read_bytes()

    # Other weights under the same name are found, and so is a changed digest.
    with start(
        env, "export", str(epochs(uninterrupted / "phase_1")[1].path), "-o", str(exported), "--force"
    ) as running:
        assert running.end().code == 0
    assert audited(copy, demo_data).codes == ["audit.other_init"]
    manifest = ours[1].manifest_path
    manifest.write_text(manifest.read_text().replace(source.weights_sha256, "0" * 64))
    assert inconsistencies(tmp_path / "ours" / "phase_1")


@pytest.mark.parametrize(
    ("keys", "codes"),
    [
        ({"TRAIN.INIT_FROM": "/nowhere.safetensors"}, {"init.unreadable"}),
        ({"TRAIN.INIT_FROM": "hf://owner/name"}, {"fetch.address"}),
        ({"TRAIN.INIT_FROM": __file__}, {"file.unknown"}),
        ({"TRAIN.INIT_FROM": "{epoch}", "MODEL.BINS": 40}, {"weights.shape", "weights.other_model"}),
        ({"TRAIN.INIT_FROM": "{epoch}", "MODEL.ENCODER.PRETRAIN_TYPE": "mae"}, {"config.rule"}),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(
    keys: dict[str, object], codes: set[str], uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    place = str(epochs(uninterrupted / "phase_1")[1].path)
    ended = train(environment(tmp_path, demo_data, {k: str(v).replace("{epoch}", place) for k, v in keys.items()}))
    assert (ended.code, set(ended.codes)) == (2, codes)
    assert not (tmp_path / "phase_1").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fine_tuning_reaches_in_two_epochs_what_scratch_reaches_in_six(demo_data: Path, tmp_path: Path) -> None:
    def trained(name: str, last: int, overrides: str) -> float | None:
        with start({**environment(tmp_path / name, demo_data, EPOCHS=last), "OVERRIDES": overrides}) as running:
            assert running.end(within_s=1500).code == 0
        return epochs(tmp_path / name / "phase_1")[last].iou

    scratch, exported = trained("scratch", 6, ""), tmp_path / "weights.pth.tar"
    last = epochs(tmp_path / "scratch" / "phase_1")[6].path
    with start(environment(tmp_path, demo_data), "export", str(last), "-o", str(exported)) as running:
        assert running.end().code == 0
    tuned = trained("tuned", 2, f"TRAIN.INIT_FROM {exported}")
    print(f"IoU of training: {scratch} from scratch, {tuned} fine-tuned")
    assert scratch is not None and tuned is not None and tuned >= scratch > 0.1
