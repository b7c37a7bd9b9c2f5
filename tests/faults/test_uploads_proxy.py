"""Uploads and downloads through an HTTP proxy, as the usual variables name it."""

import os
from pathlib import Path

import pytest
from uploads.harness import BOTH_WAYS, assert_arrived, environ, once, uploader_process
from uploads.http_proxy import Proxy
from uploads.hub_server import Hub
from uploads.xet_server import XetHub

from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.uploads.fetch import fetch_checkpoint

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
NONE = {name: "" for pair in NAMES for name in (pair, pair.lower())} | {"SSL_CERT_FILE": ""}


@BOTH_WAYS
def test_everything_goes_through_the_proxy(
    hub: Hub, output: Path, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {**NONE, "http_proxy" if isinstance(hub, XetHub) else "HTTP_PROXY": proxy.url}
    with uploader_process(hub, output, "--once", variables=variables) as running:
        assert running.end() == 0, running.said()
    for key, value in environ(hub, output, variables=variables).items():
        monkeypatch.setenv(key, value)
    fetch_checkpoint(read_environment(os.environ), 2, tmp_path / "new")
    assert len(proxy.seen) >= len(hub.calls) > 10
    assert_arrived(hub, output)


def test_a_host_of_no_proxy_is_reached_directly(hub: Hub, output: Path, proxy: Proxy) -> None:
    variables = {**NONE, "HTTP_PROXY": proxy.url, "no_proxy": "127.0.0.1,localhost"}
    with uploader_process(hub, output, "--once", variables=variables) as running:
        assert running.end() == 0, running.said()
    assert proxy.seen == []


def test_an_https_hub_is_reached_by_connect(hub: Hub, output: Path, proxy: Proxy) -> None:
    """There is no TLS behind it; what counts is that the proxy is asked, and that this may pass."""
    variables = {**NONE, "https_proxy": proxy.url, "HF_ENDPOINT": hub.endpoint.replace("http:", "https:")}
    assert once(hub, output, variables=variables) == 3
    assert len([line for line in proxy.seen if line.startswith("CONNECT 127.0.0.1:")]) > 1
    assert hub.calls == []


BROKEN = {
    "HF_HUB_OFFLINE": "1",
    "SSL_CERT_FILE": "nonexistent.pem",
    "REQUESTS_CA_BUNDLE": "nonexistent.pem",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "HTTP_PROXY": "gopher://127.0.0.1:9",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_setup_in_which_nothing_can_be_reached_is_a_users_error(hub: Hub, output: Path, name: str) -> None:
    variables = {**NONE, name: BROKEN[name]}
    if name in ("HF_HUB_OFFLINE", "REQUESTS_CA_BUNDLE"):  # read when a process begins
        with uploader_process(hub, output, "--once", variables=variables) as running:
            assert running.end() == 2
        assert "upload.setup" in running.said()
    else:
        with pytest.raises(UserError) as refused:
            once(hub, output, variables={name: BROKEN[name]})
        assert refused.value.code == "upload.setup"
    assert hub.calls == []


def test_offline_a_download_is_a_users_error_without_a_request(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environ(hub, output, variables={"HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError) as refused:
        fetch_checkpoint(read_environment(os.environ), 2, tmp_path / "new")
    assert (refused.value.code, hub.calls) == ("upload.setup", [])
