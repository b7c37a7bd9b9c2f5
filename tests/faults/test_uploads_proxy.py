"""Uploads and downloads through an HTTP proxy, as the usual variables name it."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from uploads.harness import BOTH_WAYS, assert_arrived, environ, once, uploader_process
from uploads.hub_server import Hub
from uploads.xet_server import XetHub

from seqtrack.config.environment import read_environment
from seqtrack.errors import UserError
from seqtrack.uploads.fetch import fetch_checkpoint

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
NONE = {name: "" for pair in NAMES for name in (pair, pair.lower())} | {"SSL_CERT_FILE": ""}


class Proxy:
    """An HTTP proxy on loopback: forwards requests for `http://host:port/path`, and tunnels CONNECT. `seen` are the
    first lines of the requests."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as reader:
            lines = [reader.readline()]
            while (line := reader.readline()).strip():
                lines.append(line)
            self.seen.append(lines[0].decode().strip())
            method, url, version = self.seen[-1].split()
            place = urlsplit(url if "//" in url else f"//{url}")
            with socket.create_connection((place.hostname, place.port)) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = place._replace(scheme="", netloc="").geturl()
                    kept = [line for line in lines[1:] if not line.lower().startswith((b"connection", b"proxy-"))]
                    # One request per connection, so that each is seen.
                    server.sendall(f"{method} {path} {version}\r\nConnection: close\r\n".encode())
                    server.sendall(b"".join(kept) + b"\r\n")
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                while data := reader.read1(1 << 16):
                    server.sendall(data)
                back.join()


def _copy(source: socket.socket, goal: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            goal.sendall(data)
        goal.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy()
    yield running
    running.stop()


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
    with uploader_process(hub, output, "--once", variables={**NONE, name: BROKEN[name]}) as running:
        assert running.end() == 2
    assert "upload.setup" in running.said()
    assert hub.calls == []


def test_offline_a_download_is_a_users_error_without_a_request(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environ(hub, output, variables={"HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError) as refused:
        fetch_checkpoint(read_environment(os.environ), 2, tmp_path / "new")
    assert (refused.value.code, hub.calls) == ("upload.setup", [])
