"""A read-only Hub data set over real HTTP for the real client: listing, HEAD, GET with ranges, redirects, faults."""

import hashlib
import json
import threading
import zipfile
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
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    wrong_bytes: bool = False
    ignore_range: bool = False
    status: int = 200
    store_status: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def listing(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for path, data in self.files.items():
            sha = hashlib.sha256(data).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": sha[:40]}
            if path.endswith(".zip"):
                entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries


class HubServer:
    """`with HubServer(hub) as endpoint:`"""

    def __init__(self, hub: Hub) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(("GET", path, self.headers.get("Range", "")))
            if hub.status != 200:
                self._answer(hub.status, b'{"error": "planned"}')
            elif path.startswith(f"/api/datasets/{REPO}/tree/"):
                self._answer(200, json.dumps(hub.listing()).encode())
            elif path.startswith(f"/datasets/{REPO}/resolve/main/"):
                self._redirect(path.rpartition("/")[2])
            elif path.startswith("/store/") and hub.store_status:
                self._answer(hub.store_status.pop(0), b"")
            elif path.startswith("/store/"):
                self._send(hub.files[path.rpartition("/")[2]])
            else:
                self._answer(404, b'{"error": "unknown"}', {"X-Error-Code": "RepoNotFound"})

        def do_HEAD(self) -> None:
            self._redirect(unquote(urlsplit(self.path).path).rpartition("/")[2])

        def _redirect(self, name: str) -> None:
            """As the Hub does for large files: the bytes are on another host name."""
            data = hub.files[name]
            headers = {
                "Location": f"http://localhost:{self.server.server_address[1]}/store/{name}",
                "X-Repo-Commit": "1" * 40,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            }
            self._answer(302, b"", headers)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            common = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
            for key, value in {**common, **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def _send(self, data: bytes) -> None:
            if hub.wrong_bytes:
                data = bytes(byte ^ 0x55 for byte in data)
            start = 0
            asked = self.headers.get("Range")
            if asked and not hub.ignore_range:
                start = int(asked.removeprefix("bytes=").split("-")[0])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            body = data[start:]
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if hub.cut_after:
                self.wfile.write(body[: hub.cut_after.pop(0)])
                self.wfile.flush()
                if hub.hold is not None:
                    hub.hold.wait(60)
                self.close_connection = True
                return
            self.wfile.write(body)

    return Handler


def zip_of(members: dict[str, bytes], path: Path) -> bytes:
    """A stored zip with these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path.read_bytes()
