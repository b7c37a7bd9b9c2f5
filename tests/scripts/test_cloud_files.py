"""The files for rented machines, as far as they can be checked without one."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqtrack.config.environment import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
CLOUD = ROOT / "docker/cloud"


def test_the_kubernetes_file_is_valid_its_sidecar_native_and_the_trainer_starts_none() -> None:
    check = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", CLOUD / "kubernetes.yaml"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    _, job = yaml.safe_load_all((CLOUD / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    uploader, prepare = pod["initContainers"]
    assert (uploader["restartPolicy"], uploader["args"]) == ("Always", ["upload"])
    assert "restartPolicy" not in prepare
    assert pod["containers"][0]["args"] == ["--no-sidecar", "train"]
    grace = next(int(item["value"]) for item in uploader["env"] if item["name"] == "UPLOAD_GRACE_S")
    assert grace < pod["terminationGracePeriodSeconds"]


def test_only_known_variables_are_set() -> None:
    places = {
        "kubernetes": r"- \{name: ([A-Z_]+), value",
        "skypilot": r"^  ([A-Z_]+):",
        "cloud-init": r"^ {6}([A-Z_]+)=",
    }
    for name, place in places.items():
        found = set(re.findall(place, (CLOUD / f"{name}.yaml").read_text(), re.MULTILINE))
        assert found and found - {"PYTHONPATH"} <= set(VARIABLES), name
    assert (CLOUD / "cloud-init.yaml").read_text().startswith("#cloud-config\n")


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
NETWORK = {*PROXIES, *map(str.lower, PROXIES), "HF_HUB_OFFLINE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
NETWORK |= {"CUDA_VISIBLE_DEVICES"}  # of the machine as well
OURS = {name for name in VARIABLES if not name.startswith("SEQTRACK_")} | NETWORK


needs_compose = pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker compose, but no engine")


@pytest.mark.parametrize(
    "path", [*ROOT.glob("compose*.yaml"), *ROOT.glob("docker/compose*.yaml")], ids=lambda p: p.name
)
def test_no_compose_file_splits_a_variable_folder_at_its_colon(path: Path) -> None:
    text = re.sub(r"!reset null", "null", path.read_text())
    mounts = [mount for service in yaml.safe_load(text)["services"].values() for mount in service.get("volumes", ())]
    assert [mount for mount in mounts if isinstance(mount, str) and "$" in mount] == []


@needs_compose
@pytest.mark.parametrize("folder", ["output", "a:b"])
def test_two_nodes_take_any_folder(tmp_path: Path, folder: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OUTPUT_DIR": folder}
    done = compose_config(environment, "docker/compose.multi.yaml")
    assert done.returncode == 0, done.stderr
    (output,) = [m for m in yaml.safe_load(done.stdout)["services"]["node1"]["volumes"] if m["target"] == "/output"]
    assert (output["type"], Path(output["source"])) == ("bind", tmp_path / folder)


@needs_compose
@pytest.mark.parametrize("folder", ["output", " blank", "./output"])
def test_compose_takes_any_folder_and_passes_on_every_variable(tmp_path: Path, folder: str) -> None:
    assert set(yaml.safe_load((ROOT / "compose.yaml").read_text())["x-settings"]) == OURS | {"SEQTRACK_COMMAND"}
    network = dict.fromkeys(NETWORK, "http://proxy.example:3128")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OUTPUT_DIR": folder, **network}
    done = compose_config(environment)
    assert done.returncode == 0, done.stderr
    trainer = yaml.safe_load(done.stdout)["services"]["train-phase1"]
    assert network.items() <= trainer["environment"].items()
    (output,) = [mount for mount in trainer["volumes"] if mount["target"] == "/output"]
    assert (output["type"], Path(output["source"])) == ("bind", tmp_path / folder)


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker compose, but no engine")
def test_without_a_gpu_no_service_asks_for_one() -> None:
    asking = []
    for files in (["compose.yaml"], ["compose.yaml", "compose.cpu.yaml"]):
        options = [word for file in files for word in ("--file", str(ROOT / file))]
        words = ["docker", "compose", *options, "--profile", "*", "config"]
        services = yaml.safe_load(subprocess.run(words, capture_output=True, check=True).stdout)["services"]
        asking.append({name for name, service in services.items() if "deploy" in service or "ulimits" in service})
    assert asking == [{"train-phase1", "train-phase2", "seqtrack", "evaluate", "audit", "doctor"}, set()]


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def compose_config(environment: dict[str, str], file: str = "compose.yaml") -> subprocess.CompletedProcess[str]:
    files = ["--file", ROOT / file, "--project-directory", environment["HOME"]]
    command = ["docker", "compose", *files, "config"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@needs_compose
@pytest.mark.parametrize(("gpus", "is_valid"), [("all", True), ("2", True), ("device=0", False), ("0,2", False)])
def test_the_number_of_gpus_is_written_alike_for_compose_and_the_script(
    tmp_path: Path, gpus: str, is_valid: bool
) -> None:
    said = tmp_path / "said"
    fake(tmp_path, "docker", f'echo "$@" >>{said}')
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GPUS": gpus, "OUTPUT_DIR": str(tmp_path / "o")}
    assert (compose_config(environment).returncode == 0) == is_valid
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA_DIR": str(tmp_path / "d")}
    assert subprocess.run([CLOUD / "run.sh"], env=environment, capture_output=True).returncode == 2 * (not is_valid)
    assert said.exists() == is_valid, "refused before Docker sees it"


def test_the_skypilot_setup_prepares_the_data_with_its_own_variables(tmp_path: Path) -> None:
    task = yaml.safe_load((CLOUD / "skypilot.yaml").read_text())
    places = {"/opt/venv/bin/python": sys.executable, "/app": str(ROOT), "--root /": f"--root {tmp_path}"}
    setup = task["setup"]
    for place, here in places.items():
        setup = setup.replace(place, here)
    doctor, prepare = setup.splitlines()
    folders = {name: str(tmp_path / name) for name in ("OUTPUT_DIR", "DATA_DIR", "HOME")}
    others = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = {**task["envs"], **folders, **others, "DATASET": "demo", "CLASSES": ""}
    assert environment["RESUME_EPOCH"] == "latest"
    found = subprocess.run(["bash", "-c", doctor], env=environment, capture_output=True, text=True)
    assert "RESUME_EPOCH" not in found.stdout + found.stderr
    done = subprocess.run(["bash", "-c", prepare], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "DATA_DIR").iterdir())


@pytest.mark.parametrize("has_driver", [True, False])
def test_cloud_init_installs_a_driver_and_restarts_only_where_there_is_none(tmp_path: Path, has_driver: bool) -> None:
    said = tmp_path / "said"
    for name in ("apt-get", "ubuntu-drivers", "touch"):
        fake(tmp_path, name, f'echo {name} "$@" >>{said}')
    fake(tmp_path, "nvidia-smi", f"exit {9 * (not has_driver)}")
    words = yaml.safe_load((CLOUD / "cloud-init.yaml").read_text())
    (step,) = [step for step in words["runcmd"] if "nvidia-smi" in step[-1]]
    subprocess.run(step, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    assert said.exists() == (not has_driver)
    assert has_driver or said.read_text().splitlines()[-1] == f"touch {words['power_state']['condition'][-1]}"
    (unit,) = [file["content"] for file in words["write_files"] if file["path"].endswith(".service")]
    assert unit.count("=journal+console") == 2, "failures are on the machine's console"


@pytest.mark.parametrize("script", ["run.sh", "slurm.sh"])
def test_a_script_passes_on_every_variable_and_shows_no_token(tmp_path: Path, script: str) -> None:
    said = tmp_path / "said"
    fake(tmp_path, "docker", f'[ "$1" = run ] && echo "$@" >>{said}')
    fake(tmp_path, "apptainer", f"env | grep ^APPTAINERENV_ >>{said}")
    (tmp_path / "token").write_text("hf_secret")
    fixed = {"OUTPUT_DIR": str(tmp_path / "o"), "DATA_DIR": str(tmp_path / "d")}
    given = dict.fromkeys(OURS, "1") | fixed | {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_TOKEN": ""}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run([CLOUD / script], env={**environment, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prefix, names = ("--env ", OURS - set(fixed)) if script == "run.sh" else ("APPTAINERENV_", OURS)
    assert {name for name in names - {"HF_TOKEN"} if f"{prefix}{name}" not in said.read_text()} == set()
    assert "hf_secret" not in said.read_text()
    said.write_text("")
    done = subprocess.run([CLOUD / script], env={**environment, "HF_TOKEN": "hf_secret"}, capture_output=True)
    if script == "run.sh":
        assert (done.returncode, said.read_text()) == (2, "")
    else:
        assert "APPTAINERENV_HF_TOKEN=" in said.read_text()


def start_script(folder: Path, script: str, place: Path, token: Path) -> tuple[int, list[str] | None]:
    """The exit code, and the words that the script gives to Docker or Apptainer, if it starts them."""
    said = folder / "said"
    said.unlink(missing_ok=True)
    fake(folder, "docker", f'[ "$1" = run ] && printf "%s\\n" "$@" >"{said}"')
    fake(folder, "apptainer", f'printf "%s\\n" "$@" >"{said}"')
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(place), "GPUS": ""}
    folders = {"OUTPUT_DIR": str(place / "output"), "DATA_DIR": str(place / "data"), "HF_TOKEN_PATH": str(token)}
    done = subprocess.run([CLOUD / script], env={**environment, **folders}, capture_output=True)
    return done.returncode, said.read_text().splitlines() if said.exists() else None


def test_the_docker_script_mounts_folders_of_any_name(tmp_path: Path) -> None:
    place = tmp_path / 'a:b, "c"'
    place.mkdir()
    (place / "token").write_text("hf_secret")
    code, words = start_script(tmp_path, "run.sh", place, place / "token")
    assert code == 0 and words is not None
    options = [words[at + 1] for at, word in enumerate(words) if word == "--mount"]
    mounts = [dict(field.partition("=")[::2] for field in row) for row in csv.reader(options)]  # as Docker reads it
    assert {mount["target"]: mount["source"] for mount in mounts} == {
        "/output": str(place / "output"), "/data": str(place / "data"), "/run/secrets/hf_token": str(place / "token"),
    }  # fmt: skip
    assert all((place / name).is_dir() for name in ("output", "data")), "--mount creates no folder"
    assert [mount["target"] for mount in mounts if "readonly" in mount] == ["/run/secrets/hf_token"]


@pytest.mark.parametrize("script", ["run.sh", "slurm.sh"])
def test_a_script_refuses_a_token_file_that_does_not_exist(tmp_path: Path, script: str) -> None:
    assert start_script(tmp_path, script, tmp_path, tmp_path / "token") == (2, None)
    (tmp_path / "token").write_text("hf_secret")
    assert start_script(tmp_path, script, tmp_path, tmp_path / "token")[0] == 0


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b"])
def test_the_slurm_script_refuses_paths_that_apptainer_would_split(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "token").write_text("hf_secret")
    (tmp_path / "token").write_text("hf_secret")
    assert start_script(tmp_path, "slurm.sh", tmp_path / name, tmp_path / "token") == (2, None)
    assert start_script(tmp_path, "slurm.sh", tmp_path, tmp_path / name / "token") == (2, None)
    assert start_script(tmp_path, "slurm.sh", tmp_path, tmp_path / "token")[0] == 0


@pytest.mark.parametrize("code", [0, 75, 1])
def test_the_slurm_script_forwards_the_signal_and_requeues_only_after_75(tmp_path: Path, code: int) -> None:
    """The child exits while the script's `wait` is interrupted; a lost code would be 143."""
    started, log = tmp_path / "started", tmp_path / "log"
    os.mkfifo(started)
    (tmp_path / "child.py").write_text(
        f"import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit({code}))\n"
        f"open('{started}', 'w').close()\nsignal.pause()\n"
    )
    fake(tmp_path, "apptainer", f"env >{tmp_path}/env\nexec {sys.executable} {tmp_path}/child.py")
    fake(tmp_path, "scontrol", f"echo $* >>{log}")
    environment = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "PHASE": "2"}
    for signals in (1, 3):
        log.write_text("")
        job = subprocess.Popen([CLOUD / "slurm.sh"], env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        started.read_bytes()  # returns when the child has its handler and closes its end
        for _ in range(signals):
            job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == code
        assert log.read_text().splitlines() == ["requeue 7"] * (code == 75)
    assert "APPTAINERENV_PHASE=2" in (tmp_path / "env").read_text().splitlines()
