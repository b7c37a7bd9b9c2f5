"""A read-only Hub data set over real HTTP for the real client: listing, GET with ranges, redirects, faults."""

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = "l-lt/LaSOT"


@dataclass
class Hub:
    """Files of the data set, and faults of the next downloads.

    Attributes:
        cut_after: bytes after which the connection is dropped, once for each entry.
        hold: with `cut_after`, keep the connection open instead of dropping it, until this is set.
        wrong_bytes: serve other bytes of the same size.
        store_status: responses of the storage host, once each, before it serves.
        ignore_range: answer a range request with the whole file.
        status: of every request to the Hub itself.
        ranges: of the requests to the storage host.
        num_requests: to the Hub itself.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    wrong_bytes: bool = False
    ignore_range: bool = False
    status: int = 200
    store_status: list[int] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    num_requests: int = 0

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Yield the endpoint."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        if path.startswith("/store/"):
            self.hub.ranges.append(self.headers.get("Range", ""))
            self._answer(self.hub.store_status.pop(0)) if self.hub.store_status else self._send(self.hub.files[name])
            return
        self.hub.num_requests += 1
        if self.hub.status != 200:
            self._answer(self.hub.status, b'{"error": "planned"}')
        elif path.startswith(f"/api/datasets/{REPO}/tree/"):
            self._answer(200, json.dumps([_listed(*one) for one in self.hub.files.items()]).encode())
        elif path.startswith(f"/datasets/{REPO}/resolve/main/"):
            # As the Hub does for large files: the bytes are on another host name.
            self._answer(302, location=f"http://localhost:{self.server.server_address[1]}/store/{name}")
        else:
            self._answer(404, b'{"error": "unknown"}')

    def _answer(self, status: int, body: bytes = b"", location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def _send(self, data: bytes) -> None:
        if self.hub.wrong_bytes:
            data = bytes(byte ^ 0x55 for byte in data)
        asked = "" if self.hub.ignore_range else self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.hub.cut_after:
            self.wfile.write(data[start:][: self.hub.cut_after.pop(0)])
            self.wfile.flush()
            if self.hub.hold is not None:
                self.hub.hold.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data[start:])


def _listed(path: str, data: bytes) -> dict[str, object]:
    sha256 = hashlib.sha256(data).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": sha256[:40]}
    lfs = {"oid": sha256, "size": len(data), "pointerSize": 134}
    return {**entry, "lfs": lfs} if path.endswith(".zip") else entry


def zip_of(members: dict[str, bytes], path: Path) -> bytes:
    """A stored zip with these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path.read_bytes()
