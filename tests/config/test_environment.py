"""Environment variables: values, all problems at once, and a token that is never shown."""

import re
from pathlib import Path

import pytest

from seqtrack.config.environment import (
    VARIABLES,
    Environment,
    configure,
    load_dotenv_file,
    read_environment,
    read_token,
)
from seqtrack.errors import Problem, UserError

REPOSITORY = Path(__file__).parents[2]
TOKEN = "hf_NotARealTokenButItLooksLikeOne"


def problems_of(environ: dict[str, str]) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        configure(environ)
    return caught.value.problems


EVERY: dict[str, tuple[str, object]] = {
    "PHASE": ("2", 2), "RESUME_EPOCH": ("4", 4), "SEED": ("7", 7), "EPOCHS": ("6", 6), "BATCH_SIZE": ("3", 3),
    "CONFIG": ("seqtrack_l256", "seqtrack_l256"), "CLASSES": ("book, coin", ("book", "coin")),
    "DATASET": ("lasot,GOT10K_vottrain", ("lasot", "GOT10K_vottrain")),
    "DATA_DIR": ("~/data", Path("~/data").expanduser()), "DEVICE": ("CPU", "cpu"), "NPROC": ("AUTO", "auto"),
    "OVERRIDES": ("TRAIN.LR 2e-4 DATA.MEAN '[0, 0.5, 1]' TRAIN.SEED 8",
                  (("TRAIN.LR", "2e-4"), ("DATA.MEAN", "[0, 0.5, 1]"), ("TRAIN.SEED", "8"))),
    "HF_REPO": ("Me/SeqTrack", "Me/SeqTrack"), "HF_PRIVATE": ("no", False),
    "HF_ENDPOINT": ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
    "UPLOAD_TARGET": ("folder:/mnt/Backup", "folder:/mnt/Backup"),
}  # fmt: skip


def test_every_variable_is_read_and_by_default_the_demo_is_trained_and_nothing_is_uploaded() -> None:
    environment, config = configure({"PATH": "/bin", "HF_HOME": "/cache"} | dict.fromkeys(VARIABLES, " "))
    assert environment == Environment(config="demo")
    assert (config.DATA.TRAIN.DATASETS_NAME, environment.target) == (("DEMO",), None)
    environment, config = configure({name: text for name, (text, _) in EVERY.items()})
    assert environment == Environment(**{name.lower(): value for name, (_, value) in EVERY.items()})
    assert (config.TRAIN.SEED, config.TRAIN.EPOCH, config.TRAIN.BATCH_SIZE) == (8, 6, 3)
    assert (config.DATA.CLASSES, config.DATA.TRAIN.DATASETS_NAME) == (("book", "coin"), ("LASOT", "GOT10K_vottrain"))
    assert config.DATA.TRAIN.DATASETS_RATIO == (1.0, 1.0)
    assert (config.TRAIN.LR, config.DATA.MEAN) == (2e-4, (0.0, 0.5, 1.0))


def test_all_problems_of_environment_and_configuration_are_reported_at_once() -> None:
    problems = problems_of({"PHASE": "3", "SEED": "-1", "NPROC": "all", "OVERRIDES": "LR 1 TRAIN.SEED x"})
    assert [problem.split(" ")[0].rstrip(":") for problem in problems] == ["PHASE", "SEED", "NPROC", "LR", "TRAIN.SEED"]
    codes = ["variable.invalid_value"] * 3 + ["config.unknown_key", "config.invalid_value"]
    assert [problem.code for problem in problems] == codes


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("PHASE", ["0", "one", "1.0", "12"], ["1", " 2 "]),
        ("RESUME_EPOCH", ["0", "-1", "3.0", "last", "１", "03"], ["1", " 3", "latest", " latest "]),
        ("EPOCHS", ["0", "ten"], ["1"]),
        ("BATCH_SIZE", ["0", "1e1", "9" * 50], ["1"]),
        ("SEED", ["4294967296", "0x1"], ["0", "4294967295"]),
        ("CLASSES", ["book,,coin", "../book", "a b", ","], ["book", "book,coin"]),
        ("DATASET", ["lasot,", "a/b"], ["lasot", "LASOT,GOT10K_vottrain"]),
        ("DEVICE", ["gpu", "cuda:1"], ["cuda", "AUTO"]),
        ("NPROC", ["0", "-2", "two"], ["auto", "8"]),
        ("RENDEZVOUS", ["node", ":1", "node:0", "node:65536", "node:x", "node:"], ["node-1:29500", "n:65535"]),
        ("HEALTH_STALE_S", ["0.5", "-1", "nan", "x", "1e8", "1_0"], ["2.5"]),
        ("HF_REPO", ["a", "a/b/c", "/b", "a/", "a b/c", "a/b.git", "a--b/c", "../c", "a/..", "https://hf/a/b",
                     "datasets/a", "models/a", "spaces/a", "spaces/a/b"],
         ["a/b", "datasets/a/b", "a/datasets", "my-datasets/a"]),
        ("HF_ENDPOINT", ["hub.example.com", "ftp://x", "http://", "http://u:p@x", "http://x:0", "http://x y", "http://x?"],
         ["https://x", "http://x.y:8080/p"]),
        ("HF_PRIVATE", ["maybe", "2"], ["true", "0", "Yes"]),
        ("UPLOAD_TARGET", ["/mnt/backup", "folder:", ":x"], ["folder:/mnt/backup"]),
        ("OVERRIDES", ["TRAIN.LR", "TRAIN.LR=1", "TRAIN.LR '1", "A 1 B"], ["TRAIN.LR 1", "TRAIN.LR '1'"]),
        ("HF_TOKEN", ["two words", "naïve"], [TOKEN]),
        ("DATA_DIR", ["~nobody-by-this-name/x", "\udcff"], ["~/x"]),
        ("CONFIG", ["a\nb", "a\u200bb"], ["demo"]),
        ("OUTPUT_DIR", ["two\nlines", "d\udcc3\udcbc/o"], ["o"]),
    ],
)  # fmt: skip
def test_malformed_values_are_refused_and_valid_ones_are_not(name: str, bad: list[str], good: list[str]) -> None:
    for value in bad:
        with pytest.raises(UserError) as caught:
            read_environment({name: value})
        (problem,) = caught.value.problems
        assert problem.code == "variable.invalid_value" and problem.startswith(name) and problem.isprintable(), value
    for value in good:
        read_environment({name: value})


def test_phase_2_resumes_after_epoch_3_unless_nothing_is_left_to_train() -> None:
    assert [configure({"PHASE": "2", **more})[0].resume_epoch for more in ({}, {"RESUME_EPOCH": "5"})] == [3, 5]
    assert configure({"PHASE": "2", "RESUME_EPOCH": "latest"})[0].resume_epoch == 3, "only `run` knows the latest"
    assert [configure(environ)[0].resume_epoch for environ in ({}, {"RESUME_EPOCH": "9"})] == [None, 9]
    for environ in ({"RESUME_EPOCH": "10"}, {"PHASE": "2", "EPOCHS": "2"}, {"EPOCHS": "1", "RESUME_EPOCH": "1"}):
        assert [problem.code for problem in problems_of(environ)] == ["config.resume_epoch"]


def test_experiment_and_data_set_follow_each_other_unless_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("DATA: {TRAIN: {DATASETS_NAME: [LASOT, COCO17], DATASETS_RATIO: [3, 1]}}")
    for environ, experiment, names in (
        ({"DATASET": "DEMO"}, "demo", ("DEMO",)),
        ({"DATASET": "lasot"}, "seqtrack_b256", ("LASOT",)),
        ({"DATASET": "lasot", "CONFIG": "demo"}, "demo", ("LASOT",)),
        ({"CONFIG": "seqtrack_b256"}, "seqtrack_b256", ("DEMO",)),
        ({"CONFIG": str(path)}, str(path), ("LASOT", "COCO17")),
        ({"CONFIG": str(path), "DATASET": "demo"}, str(path), ("DEMO",)),
    ):
        environment, config = configure(environ)
        assert (environment.config, config.DATA.TRAIN.DATASETS_NAME) == (experiment, names)
        assert environment.given("DATASET") is ("DATASET" in environ)
    assert not read_environment({"PHASE": "2"}).given("RESUME_EPOCH")
    assert [one.code for one in problems_of({"CONFIG": "seqtrack-b384"})] == ["config.unknown_experiment"]


def test_the_token_is_in_no_message() -> None:
    assert TOKEN not in repr(configure({"HF_TOKEN": TOKEN, "HF_REPO": "me/x"}))
    for environ in ({"HF_TOKEN": f"{TOKEN} {TOKEN}"}, {"HF_ENDPOINT": f"https://user:{TOKEN}@host"}):
        (problem,) = problems_of(environ)
        assert TOKEN not in problem


def test_the_token_file_takes_precedence_and_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for content in ("hf_first\n", "hf_second"):
        path.write_text(content)
        assert read_token({"HF_TOKEN_PATH": str(path), "HF_TOKEN": "hf_other"}) == content.strip()
    assert read_token({"HF_TOKEN": "hf_other", "HF_TOKEN_PATH": ""}) == "hf_other"
    assert read_token({}) is None
    for content in (b"", b"\n", f"{TOKEN}\n{TOKEN}".encode(), f"TOKEN={TOKEN} x".encode(), b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_token({"HF_TOKEN_PATH": str(path)})
        assert (caught.value.code, TOKEN in str(caught.value)) == ("token.malformed", False)
    with pytest.raises(UserError) as caught:
        read_token({"HF_TOKEN_PATH": str(tmp_path / "nothing")})
    assert caught.value.code == "token.unreadable"


def test_dotenv_sets_only_what_is_not_set_and_the_example_is_valid(tmp_path: Path) -> None:
    environ = {"SEED": "1"}
    load_dotenv_file(tmp_path, environ)
    (tmp_path / ".env").write_text("# mine\nSEED=7\nexport EPOCHS=4\nCLASSES='book,coin'  # two\nHF_REPO=\nIMAGE=x\n")
    load_dotenv_file(tmp_path, environ)
    assert environ == {"SEED": "1", "EPOCHS": "4", "CLASSES": "book,coin", "HF_REPO": "", "IMAGE": "x"}
    text = (REPOSITORY / ".env.example").read_text()
    (tmp_path / ".env").write_text(text)
    load_dotenv_file(tmp_path, example := {})
    environment, config = configure(example)
    assert (environment.dataset, environment.epochs, environment.hf_repo) == (("lasot",), 10, None)
    assert (config.DATA.TRAIN.DATASETS_NAME, config.DATA.CLASSES) == (("LASOT",), ("book", "coin"))
    assert re.search(r"hf_[A-Za-z0-9]{8}", text) is None


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (f"SEED=7\nHF_TOKEN='{TOKEN}\n".encode(), "dotenv.malformed"), (b"SEED=\xff\n", "dotenv.unreadable"),
        (b"SEED=7\nEPOCH=2\n", "variable.unknown"), (b"SEED=7\nHF_TOKENPATH=2\n", "variable.unknown"),
        (b"LEARNING_RATE=1\n", "variable.unknown"), (b"OMP_NUM_THREADS=1\nLR=1\n", "variable.unknown"),
    ],
)  # fmt: skip
def test_an_invalid_dotenv_file_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    environ: dict[str, str] = {}
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dotenv_file(tmp_path, environ)
    assert (environ, caught.value.code, TOKEN in str(caught.value)) == ({}, code, False)


def test_a_similar_name_in_the_environment_is_an_error() -> None:
    configure({"PATH": "x", "HOSTNAME": "x", "IMAGE": "x", "CUDA": "x", "LEARNING_RATE": "x"})  # of other programs
    with pytest.raises(UserError) as caught:
        configure({"EPOCH": "3", "BATCHSIZE": "4", "CONFG": "x", "SEED": "x"})
    found = [(problem.partition(":")[0], problem.code) for problem in caught.value.problems]
    unknown = [(name, "variable.unknown") for name in ("BATCHSIZE", "CONFG", "EPOCH")]
    assert found == [("SEED", "variable.invalid_value"), *unknown]
