"""The uploader in containers, with the tests' Hub as another container on the same network."""

import json
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uploads.harness import REPO, checkpoint, files_of, finish, on_hub
from uploads.http_proxy import Proxy
from uploads.hub_server import Hub

from docker.containers import SMALL, Project, command, docker, wait_until
from seqtrack.checkpoints.safetensors_io import sha256_file

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
TOKEN = "hf_thatMustBeSeenNowhere"
TUNING = json.dumps({"settle_s": 1, "start_grace_s": 5, "backoff_s": 0.1})
HUB = f"""
services:
  hub:
    image: ${{IMAGE}}
    entrypoint: [python, /hub_server.py, --host, 0.0.0.0, --port, "8080", --public-host, hub, --storage-host, storage]
    networks: {{default: {{aliases: [storage]}}}}
    volumes: ["./tests/uploads/hub_server.py:/hub_server.py:ro"]
    healthcheck: {{disable: true}}
    stop_grace_period: 0s
  train-phase1:
    environment: {{UPLOAD_TUNING: '{TUNING}'}}
"""
UPLOADING = {
    **SMALL,
    "HF_REPO": "me/tracker",
    "HF_ENDPOINT": "http://hub:8080",
    "HF_HUB_DISABLE_XET": "1",
    "HF_TOKEN_PATH": "./my-token",
    "UPLOAD_MIN_COMMIT_INTERVAL_S": "1",
}


def call(project: Project, path: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a request to the Hub's container."""
    networks = project.container("hub")["NetworkSettings"]["Networks"]
    address = f"http://{next(iter(networks.values()))['IPAddress']}:8080{path}"
    body = json.dumps(order).encode() if order is not None else None
    with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def answers(project: Project) -> bool:
    try:
        return call(project, "/_control", {"tokens": {TOKEN: "write"}})["faults"] == 0
    except OSError:
        return False


def missing(project: Project, output: Path) -> list[str]:
    """Files of an output folder that the Hub does not list with the same bytes."""
    repos = call(project, "/_state")["repos"]
    listed = repos["me/tracker"]["files"] if "me/tracker" in repos else {}
    local = [path for path in output.rglob("*") if path.is_file() and "/." not in str(path)]
    assert any(path.suffix == ".safetensors" for path in local)
    names = {path.relative_to(output).as_posix(): path for path in local}
    return sorted(name for name, path in names.items() if listed.get(name, {}).get("sha256") != sha256_file(path))


def test_both_phases_are_on_the_hub_soon_after_training_and_the_token_is_nowhere(
    make_project: Callable[..., Project],
) -> None:
    """Phase 1 with compose; phase 2 in a lone container on a new, empty machine that fetches its checkpoint."""
    project = make_project(variables=dict(UPLOADING), files=("compose.yaml", "compose.cpu.yaml", "hub.yaml"))
    (project.folder / "hub.yaml").write_text(HUB)
    (project.folder / "my-token").write_text(TOKEN + "\n")
    answer = project.compose("up", "--detach", "hub")
    assert answer.returncode == 0, answer.stderr
    wait_until("the Hub's answer", lambda: answers(project), seconds=30)
    up = project.start("up", "--no-color", "train-phase1")
    seen = ""
    while up.poll() is None:
        seen += command(["ps", "-ewwo", "args"]).stdout
        time.sleep(0.5)
    screen, _ = up.communicate()
    assert project.exit_code("train-phase1") == 0, screen
    assert "seqtrack upload" in seen
    assert missing(project, project.output) == []
    assert call(project, "/_state")["violations"] == []
    containers = project.compose("ps", "--all", "--quiet", "train-phase1").stdout.split()
    assert TOKEN not in seen + screen + project.compose("logs", "--no-color").stdout + docker("inspect", *containers)
    assert not [path for path in project.output.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    other = project.folder / "elsewhere"
    name, data = f"{project.name}-lone", str(project.folder / "data")
    place = {"IMAGE": project.image, "NETWORK": f"{project.name}_default", "NAME": name, "GPUS": ""}
    env = {**UPLOADING, **place, "PATH": os.environ["PATH"], "OUTPUT_DIR": str(other), "DATA_DIR": data}
    env |= {"UPLOAD_TUNING": TUNING, "PHASE": "2", "RESUME_EPOCH": "1"}
    answer = command([project.folder / "docker/cloud/run.sh"], cwd=project.folder, env=env)
    assert answer.returncode == 0, answer.stderr
    try:
        code = docker("wait", name, timeout=200).strip()
        log = command(["docker", "logs", name])
        assert code == "0", log.stdout + log.stderr
        assert TOKEN not in docker("inspect", name) + log.stdout + log.stderr
    finally:
        command(["docker", "rm", "--force", name])
        command(["docker", "volume", "rm", "--force", "seqtrack-cache"])
    assert missing(project, other) == []
    folders = (project.output / "phase_1", other / "phase_2")
    one, two = (json.loads((folder / "checkpoints/SEQTRACK_ep0002.json").read_text()) for folder in folders)
    assert one["weights_sha256"] == two["weights_sha256"]


def test_a_container_behind_a_proxy_on_loopback_uploads(
    make_project: Callable[..., Project], hub: Hub, proxy: Proxy
) -> None:
    hub.storage_host = "storage.invalid"
    variables = {**UPLOADING, "HF_REPO": REPO, "HF_ENDPOINT": f"http://hub.invalid:{hub.port}", "HTTP_PROXY": proxy.url}
    project = make_project(variables=variables, files=("compose.yaml", "compose.cpu.yaml", "host.yaml"))
    (project.folder / "host.yaml").write_text("services: {uploader: {network_mode: host}}")
    (project.folder / "my-token").write_text(TOKEN)
    hub.tokens[TOKEN] = "write"
    checkpoint(project.output, 1)
    finish(project.output)
    answer = project.compose("run", "--rm", "--no-deps", "-T", "uploader", "--once")
    assert answer.returncode == 0, answer.stderr
    assert on_hub(hub) == files_of(project.output)
    # Nobody but the proxy knows these names.
    assert len(proxy.seen) >= len(hub.calls) > 5 and all(".invalid:" in line for line in proxy.seen)
