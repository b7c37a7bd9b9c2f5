"""What is in the image, and what is not."""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from docker.containers import CANARY, ROOT, command, docker

pytestmark = pytest.mark.docker


def in_image(image: str, *words: str) -> str:
    """What a program in the image prints, without the entrypoint."""
    return docker("run", "--rm", "--entrypoint", words[0], image, *words[1:])


def test_labels_entrypoint_stop_signal_and_healthcheck_are_declared(image: str) -> None:
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", image))
    assert (config["StopSignal"], config["Cmd"], config["Healthcheck"]["Test"][0]) == ("SIGTERM", ["train"], "CMD")
    assert config["Entrypoint"][0] == "/usr/bin/tini"
    assert docker("run", "--rm", image, "id", "-u").strip() == "1000", "never root without a folder"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"] == "0123abcd"
    assert labels["seqtrack.lock.sha256"] == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    assert labels["seqtrack.cuda"] == "cu121"


def test_the_commit_is_found_without_an_argument(tmp_path: Path) -> None:
    read = [ROOT / "docker/read-commit", tmp_path / ".git"]
    assert command(read).stdout == "unknown\n"
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    assert command([*git, "init", "-q"]).returncode == 0
    for words in ("commit -q --allow-empty -m one", "pack-refs --all", "checkout -q --detach"):
        assert command([*git, *words.split()]).returncode == 0
        assert command(read).stdout == command([*git, "rev-parse", "HEAD"]).stdout


def layers(image: str) -> set[str]:
    """The engine's folders of an image's layers, including files that later layers removed."""
    data = json.loads(docker("inspect", "--format", "{{json .GraphDriver}}", image))
    assert data["Name"] == "overlay2", f"this test reads overlay2's folders, not {data['Name']}'s"
    return {data["Data"]["UpperDir"], *data["Data"]["LowerDir"].split(":")}


def test_no_token_is_in_any_layer_label_or_setting(image: str, tmp_path: Path) -> None:
    assert CANARY not in docker("inspect", image) + docker("history", "--no-trunc", image)
    # The same search finds a token that a later layer removed.
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY token /gone\nRUN rm /gone\n")
    (tmp_path / "token").write_text(CANARY)
    docker("build", "-q", "-t", f"{image}-leaky", str(tmp_path))
    try:
        for folders, code in ((layers(image), 1), (layers(f"{image}-leaky") - layers(image), 0)):
            search = ["grep", "--recursive", "--quiet", "--text", "--fixed-strings", CANARY, *sorted(folders)]
            assert command(search, timeout=200).returncode == code
    finally:
        docker("image", "rm", "--force", f"{image}-leaky")


def test_only_what_a_run_needs_is_in_it(image: str) -> None:
    files = in_image(image, "find", "/app", "-maxdepth", "1", "-printf", "%f\n").split()
    assert {"seqtrack", "docker", "requirements.lock", "LICENSE", "README.md"} <= set(files)
    assert not {".env", ".git", "tests", "output", "data", "hf_token", "secrets"} & set(files)
    search = "for name in gcc g++ make pip pip3 uv git curl; do command -v $name; done; ls -A /root/.cache /uv /locks"
    left = in_image(image, "sh", "-c", f"({search}; find /var/cache/apt /var/lib/apt/lists -type f) 2>/dev/null; true")
    assert left.strip() == "", "no compiler, installer or download"


def test_the_packages_are_those_of_the_lock_and_no_library_is_installed_twice(image: str) -> None:
    show = "import importlib.metadata as m; print(*sorted(f'{d.name.lower()}=={d.version}' for d in m.distributions()))"
    installed = set(in_image(image, "python", "-c", show).replace("_", "-").split())
    locked = set(re.findall(r"^([a-z0-9][\w.-]*==[^ ]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert installed <= locked, sorted(installed - locked)
    # cuDNN and others are split over files of different names; the same name twice would be a second copy.
    found = in_image(image, "find", "/", "-xdev", "-name", "*.so*", "-type", "f", "-size", "+1M", "-printf", "%f\n")
    names = Counter(re.sub(r"\.so.*", "", name) for name in found.split())
    assert len(names) > 50 and any(name.startswith("libtorch") for name in names), "the search found too few libraries"
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["--user", "1234:1234", "-v", "{}/cache:/cache"], "/cache/1234"),
        (["-v", "{}/cache:/cache"], "/cache/1234"),
        (["--user", "1234:1234"], "/tmp/"),
    ],
    ids=["another user", "root, who becomes the owner", "no cache"],
)
def test_caches_are_in_the_mounted_folder_for_every_user(
    image: str, tmp_path: Path, options: list[str], place: str
) -> None:
    mounts = ["-v", f"{tmp_path}/output:/output", "-v", f"{tmp_path}/data:/data"]
    for name in ("output", "data", "cache"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 1234, 1234)
    options = [*mounts, *(word.format(tmp_path) for word in options)]
    words = "echo $HF_HOME $TORCH_HOME && mkdir -p $HF_HOME && ls -d /cache/*"
    said = docker("run", "--rm", "--read-only", "--tmpfs", "/tmp", *options, image, "sh", "-c", words + " || true")
    assert len(said.split()) >= 2 and all(folder.startswith(place) for folder in said.split())


def test_what_cannot_work_is_refused_with_exit_code_2(image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for options, named in (
        (["-v", f"{tmp_path}:/output", "--user", "4321:4321"], "4321"),
        (["-v", f"{tmp_path}:/output:ro"], "/output"),
        (["-e", "PHASE=3"], "]: PHASE"),
    ):
        answer = command(["docker", "run", "--rm", *options, image])
        assert answer.returncode == 2 and named in answer.stderr
