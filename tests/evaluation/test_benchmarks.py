"""The test sets besides LaSOT: published numbers of published trackers, and each set in its own layout."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from data.makers import make_got10k

from seqtrack.data.annotations import read_annotations, read_archive, read_boxes, write_boxes
from seqtrack.data.sources import open_source
from seqtrack.data.test_sets import ATTRIBUTE_NAMES, read_test_set
from seqtrack.errors import UserError
from seqtrack.evaluation.benchmarks import naming_of, protocol_of, read_attributes
from seqtrack.evaluation.results import read_results, static_box_result

# AUC as the authors, pytracking and the toolkits count, P20 likewise; the authors' OP50, OP75, P_norm. Percent.
NUMBERS = """
otb100_mdnet 67.757 67.755 67.756 90.891 90.888 90.944 85.449 47.412 85.815
otb100_ccot 67.140 67.117 67.118 89.789 89.737 89.793 82.064 51.267 81.065
otb100_kcf 47.716 47.714 47.714 69.513 69.511 69.566 55.131 27.972 60.722
otb100_dasiamrpn 65.783 65.781 65.781 88.016 88.013 88.069 86.515 42.704 83.458
otb100_siamban 69.615 69.581 69.581 91.025 90.973 91.029 89.280 52.957 86.697
otb100_atom 66.698 66.678 66.679 87.914 87.883 87.939 83.560 48.875 82.098
uav123_srdcf 46.352 46.352 46.352 67.637 67.637 67.637 55.113 26.357 58.513
uav123_meem 39.178 39.178 39.178 62.736 62.736 62.736 44.070 15.020 51.932
uav123_kcf 33.098 33.098 33.098 52.336 52.336 52.336 36.859 14.440 44.134
uav123_autotrack 47.217 47.217 47.218 68.864 68.864 68.864 55.850 26.518 60.837
uav123_siamfc 49.960 49.960 49.960 72.055 72.055 72.055 62.518 29.983 67.897
uav123_siamrpn 58.241 58.241 58.242 77.431 77.431 77.431 73.106 49.087 74.087
tc128_kmc 48.813 48.778 48.778 67.216 67.169 67.446 60.869 25.812 60.021
tc128_kmc_scale 46.783 46.748 46.748 65.567 65.523 65.800 57.178 22.973 57.721
"""
# The first box repeated, by set and convention: AUC, P20, OP50, OP75, P_norm as far as known.
STATIC: dict[tuple[str, str], dict[str, float]] = {
    ("otb100", "authors"): {"auc": 18.077, "p20": 17.397, "op50": 13.207, "op75": 4.118, "p_norm": 10.478},
    ("uav123", "authors"): {"auc": 5.147, "p20": 7.967, "op50": 3.519, "op75": 1.438, "p_norm": 5.423},
    ("tc128", "authors"): {"auc": 12.062, "p20": 12.731, "op50": 8.076, "op75": 2.278, "p_norm": 5.767},
    # P_norm is 20.513 where the centres are subtracted before they are divided.
    ("tnl2k_test", "toolkit"): {"auc": 19.973, "op50": 16.361, "p20": 13.024, "p_norm": 20.512},
    ("tnl2k_test", "pytracking"): {"auc": 19.973, "p20": 10.205, "p_norm": 28.796},
    ("tnl2k_test", "authors"): {"auc": 20.453, "op50": 16.631, "p20": 10.309, "p_norm": 26.554},
    ("got10k_val", "authors"): {"auc": 30.702, "op50": 24.812, "p20": 6.638},
}
KEYS = {"otb100": "OTB", "uav123": "UAV", "tc128": "TC128", "tnl2k_test": "TNL2K", "got10k_val": "GOT10K_VAL"}


@pytest.fixture(scope="module")
def benchmarks(test_data: Path) -> Path:
    return test_data / "benchmarks"


@pytest.mark.parametrize(
    ("name", "most"), [*((name, 2) for name in KEYS), pytest.param("otb100", 9, marks=pytest.mark.long),
                       pytest.param("uav123", 9, marks=pytest.mark.long)],
)  # fmt: skip
def test_published_trackers_have_the_numbers_of_each_convention(name: str, most: int, benchmarks: Path) -> None:
    """To three decimals; and the box of the first frame repeated has those that were computed for it.

    In the authors' way all trackers, in the other ways the first few.
    """
    annotations = [*read_archive(benchmarks / f"{name}_gt.npz", of_annotations=True).values()]
    for at, convention in enumerate(("authors", "pytracking", "toolkit")):
        protocol = protocol_of(KEYS[name], annotations, chosen=convention)
        rows = [line.split() for line in NUMBERS.split("\n") if line.startswith(name)][: 99 if at == 0 else most]
        files = [benchmarks / f"{row[0]}.npz" for row in rows]
        read = read_results(files, annotations, protocol=protocol, naming=naming_of(KEYS[name])) if files else []
        for (_, *numbers), one in zip(rows, read, strict=True):
            expected = [numbers[at], numbers[3 + at], *(numbers[6:] if at == 0 else ())]
            metrics = ("auc", "p20", "op50", "op75", "p_norm")[: len(expected)]
            assert [f"{one.record.mean[metric]:.3f}" for metric in metrics] == expected, one.record.name
        if known := STATIC.get((name, convention)):
            static = static_box_result(annotations, protocol).record
            assert {metric: round(static.mean[metric] or 0, 3) for metric in known} == known
            if name == "got10k_val":
                assert {key: round(value, 4) for key, value in static.official.items()} == GOT10K


GOT10K = {"AO": 29.0939, "SR50": 23.5192, "SR75": 6.5331}
# AUC and P20 of single sequences and of attributes, as the authors count.
SINGLE = {
    "otb100_mdnet": "Basketball 72.3284/98.8966 Board 81.3208/89.2550 Tiger1 66.8577/89.3983 Jogging_1 67.9696/97.3941",
    "uav123_autotrack": "bike1 51.0303/43.0794 bird1_1 2.3339/26.8775 uav1_3 12.9961/37.2116",
}
ATTRIBUTES = {
    "otb100_siamban": """IV 72.45/93.30 SV 69.33/90.25 OCC 64.87/85.27 DEF 66.24/89.51 MB 69.89/90.51 FM 68.77/90.23
        IPR 71.74/95.58 OPR 68.78/91.24 OV 64.21/85.86 BC 68.04/89.36 LR 72.28/99.96""",
    "uav123_autotrack": """SV 44.21/64.91 ARC 40.92/62.18 LR 33.56/58.81 FM 35.77/53.40 FOC 23.22/46.78 POC 38.88/58.42
        OV 39.77/57.28 BC 33.72/58.41 IV 39.58/61.70 VC 41.59/61.79 CM 45.83/65.77 SOB 44.79/66.60""",
}


@pytest.mark.parametrize("tracker", sorted({*SINGLE, *ATTRIBUTES}))
def test_single_sequences_and_attributes_have_their_numbers(tracker: str, benchmarks: Path) -> None:
    name = tracker.split("_")[0]
    place = benchmarks / f"{name}_gt.npz"
    annotations = [*read_archive(place, of_annotations=True).values()]
    protocol = protocol_of(KEYS[name], annotations, attributes=place)
    (one,) = read_results([benchmarks / f"{tracker}.npz"], annotations, protocol=protocol, naming=naming_of(KEYS[name]))
    for numbers, found, digits in ((SINGLE, one.record.sequences, 4), (ATTRIBUTES, one.record.attributes, 2)):
        words = numbers.get(tracker, "").split()
        for key, value in zip(words[::2], words[1::2], strict=True):
            assert f"{found[key]['auc']:.{digits}f}/{found[key]['p20']:.{digits}f}" == value, key


HALVES = {
    "otb100": {"auc": 36.111, "p20": 47.077},
    "got10k_val": {"auc": 19.588, "p20": 6.042, "AO": 18.390},
}


def test_results_of_the_first_halves_miss_the_second_ones(benchmarks: Path, tmp_path: Path) -> None:
    """MDNet on OTB100, and the static box on GOT-10k; the numbers are those of scripts that pad after the repair."""
    for name, numbers in HALVES.items():
        annotations = [*read_archive(benchmarks / f"{name}_gt.npz", of_annotations=True).values()]
        boxes = {one.name: np.repeat(one.boxes_xywh[:1], one.num_frames, axis=0) for one in annotations}
        if name == "otb100":
            boxes = {one: found.boxes_xywh for one, found in read_archive(benchmarks / "otb100_mdnet.npz").items()}
        halves = [rows[: len(rows) // 2] for rows in boxes.values()]
        offsets = np.cumsum([0, *map(len, halves)])
        np.savez(file := tmp_path / f"{name}.npz", names=[*boxes], offsets=offsets, boxes=np.vstack(halves))
        protocol, naming = protocol_of(KEYS[name], annotations), naming_of(KEYS[name])
        (found,) = read_results([file], annotations, protocol=protocol, naming=naming)
        values = {**found.record.mean, **found.record.official}
        assert {metric: round(values[metric] or 0, 3) for metric in numbers} == numbers


FLAGS = [
    ("UAV", "anno/UAV123/{0}.txt", "anno/att/{0}.txt"),
    ("UAV", "anno/UAV123/{0}.txt", "anno/UAV123/att/{0}.txt"),
    ("LASOT_EXTENSION_SUBSET", "atv/{0}/groundtruth.txt", "att/{0}.txt"),
    ("TNL2K", "{0}/groundtruth.txt", "annos/att/{0}_attribute.txt"),
    ("TNL2K", "{0}/groundtruth.txt", "{0}/attribute.txt"),
    ("TC128", "{0}/{0}_gt.txt", "att/{0}.txt"),
    ("TC128CE", "{0}/{0}_gt.txt", "att/{0}.txt"),
]


@pytest.mark.parametrize(("key", "boxes", "attributes"), FLAGS)
def test_attributes_next_to_the_annotation_have_scores(key: str, boxes: str, attributes: str, tmp_path: Path) -> None:
    names, first = ("a_ce-1", "a_ce-2"), {"a_ce-1": "0", "a_ce-2": "1"}
    kinds = ATTRIBUTE_NAMES[key]

    def write(pattern: str, text: str, name: str) -> None:
        (path := tmp_path / pattern.format(name)).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    for name in names:
        write(boxes, "1,2,30,40\n" * 2, name)
    annotations = read_test_set(key, tmp_path, frames=False)
    assert protocol_of(key, annotations, data_dir=tmp_path).attributes == {}
    for name in names:  # the first attribute has one sequence, the second none, all others have both
        write(attributes, ",".join([first[name], "0", *["1"] * (len(kinds) - 2)]), name)
    protocol = protocol_of(key, annotations, data_dir=tmp_path)
    assert protocol.attributes == {kind: list(names) for kind in kinds[2:]}
    found = static_box_result(annotations, protocol).record
    assert {kind: one["auc"] for kind, one in found.attributes.items()} == dict.fromkeys(kinds[2:], found.mean["auc"])


def test_the_measure_of_trackingnets_server_has_the_numbers_of_its_example(benchmarks: Path, tmp_path: Path) -> None:
    """Nine truths, eight results, one of them too short: the server takes boxes of size 0 for the ninth."""
    for name in ("gt", "subm"):
        zipfile.ZipFile(benchmarks / f"trackingnet_dummy_{name}.zip").extractall(tmp_path / name)
    annotations = read_annotations(tmp_path / "gt")
    lengths = {}
    for one in annotations:
        file = tmp_path / "subm" / f"{one.name}.txt"
        if not file.exists():
            write_boxes(file, np.zeros((one.num_frames, 4)))
        lengths[one.name] = len(read_boxes(file)) - one.num_frames
    assert {name: more for name, more in lengths.items() if more} == {"a8v0k4Bz_QA_0": -48}
    protocol, naming = protocol_of("TRACKINGNET", annotations), naming_of("TRACKINGNET")
    (found,) = read_results([tmp_path / "subm"], annotations, protocol=protocol, naming=naming)
    assert {name: round(value, 5) for name, value in found.record.official.items()} == {
        "coverage": 88.95556, "success": 88.07963, "precision": 87.80247, "normalised precision": 87.80247,
    }  # fmt: skip


def test_the_measure_of_got10k_leaves_out_what_its_texts_hide_and_needs_all_of_them(tmp_path: Path) -> None:
    make_got10k(tmp_path)
    found = []
    for key in ("GOT10K_VAL", "GOT10K_TRAIN_FULL"):
        annotations = list(open_source(key, tmp_path, classes=(), split="test").sequences)
        protocol = protocol_of(key, annotations, data_dir=tmp_path)
        boxes = {one.name: one.boxes_xywh.copy() for one in annotations}
        for rows in boxes.values():
            rows[22:] = 1, 1, 1, 1  # of the last two frames the first is hidden by its cover
        found.append(protocol.official([boxes]))
    assert found[0] == found[1] and round(found[0]["SR50"], 6) == round(100 * 21 / 22, 6)
    for name in ("GOT-10k_Val_000009", "GOT-10k_Val_000010"):
        (tmp_path / "got10k" / "val" / name / "cover.label").write_text("8\n" * 9)
    annotations = list(open_source("GOT10K_VAL", tmp_path, classes=(), split="test").sequences)
    with pytest.raises(UserError) as caught:
        protocol_of("GOT10K_VAL", annotations, data_dir=tmp_path)
    assert caught.value.code == "file.count"


def test_attributes_that_are_given_twice_count_once_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "attributes.txt"
    path.write_text("a: IV IV\n\nb: IV\n")
    assert read_attributes(path, ["IV", "SV"], ["a", "b"]) == {"IV": ["a", "b"]}
    path.write_text("a: IV\na: SV\nb: SV\n")
    with pytest.raises(UserError) as caught:
        read_attributes(path, ["IV", "SV"], ["a", "b"])
    assert caught.value.code == "file.duplicate"


def test_attributes_of_no_evaluated_sequence_are_refused(tmp_path: Path) -> None:
    (text := tmp_path / "attributes.txt").write_text("a: IV\nb: IV\n")
    np.savez(packed := tmp_path / "attributes.npz", names=["a"], attributes=[[1]], attribute_names=["IV"])
    for path in (text, packed):
        with pytest.raises(UserError) as caught:
            read_attributes(path, ["IV", "SV"], ["c", "d"])
        assert caught.value.code == "file.missing"
