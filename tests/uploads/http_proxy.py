"""An HTTP proxy for tests of uploads. Names that end in `.invalid` lead to this machine: nobody else knows them, so a
client that asks for one cannot have gone around the proxy."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest


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
            host = "127.0.0.1" if str(place.hostname).endswith(".invalid") else place.hostname
            with socket.create_connection((host, place.port)) as server:
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
