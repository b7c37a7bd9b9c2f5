"""A Hugging Face Hub small enough to read, over real HTTP, that breaks on request.

It speaks what the real `huggingface_hub` client asks of it: repos, preupload, LFS batch, basic and multipart PUT,
verify, commit with optimistic locking, tree, paths-info, resolve with a redirect to another host name. Standard
library only, so that it also runs alone in a container: `python tests/uploads/hub_server.py --port 8080`.

A test sets a fault for a stage and a number of calls (`hub.fail("commit", status=503, times=2)`); everything that
happened is kept in `hub.calls` and `hub.repos`. It knows nothing of the uploader.
"""

import argparse
import base64
import hashlib
import json
import random
import re
import shutil
import socket
import struct
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".h5", ".zip")
COMMIT_LIMIT_TEXT = (
    "You have exceeded the rate limit for repository commits (128 per hour). You can retry this action in about 1 hour."
)


@dataclass
class Fault:
    """One planned failure. `times` None means forever; `chance` below 1 lets some calls through."""

    stage: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "planned failure"
    early: bool = False  # the answer comes before the body was read, and the connection ends
    reset: str | None = None  # "before" headers, "middle" of the body, "after" the call was applied
    action: Callable[[], object] | None = None  # called first: what happens elsewhere at this moment
    hang_s: float = 0.0
    rate: float | None = None  # bytes/s at which a body is read
    corrupt: str | None = None  # "bytes" or "size": what is stored or served differs from what was sent
    object_error: tuple[str, int] | None = None  # the code that a batch gives for the object of this oid
    times: int | None = 1
    chance: float = 1.0
    match: str = ""  # only calls whose path, or whose object's expected path, holds this text


@dataclass
class Entry:
    """A file of a repo: its content's digests, and its bytes if they are not stored as an object."""

    size: int
    sha256: str
    git_sha1: str
    lfs: bool
    data: bytes | None = None

    def describe(self, path: str) -> dict[str, Any]:
        line: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.git_sha1}
        return line | ({"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.lfs else {})


@dataclass
class Repo:
    """Commits, oldest first: (oid, changed paths, whole tree after it)."""

    private: bool = True
    commits: list[tuple[str, tuple[str, ...], dict[str, Entry]]] = field(default_factory=list)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def make_entry(data: bytes) -> Entry:
    return Entry(len(data), hashlib.sha256(data).hexdigest(), git_sha1(data), lfs=False, data=data)


class Reply(Exception):
    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


_REPO = r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
_API = r"/api(?:/models|(?=/datasets))" + _REPO
ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "yaml"),
    ("POST", _API + r"/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", _API + r"/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", _API + r"/paths-info/(?P<rev>[^/]+)", "paths-info"),
    ("GET", _API + r"/tree/(?P<rev>[^/]+)", "tree"),
    ("GET", _API + r"(/revision/(?P<rev>[^/]+))?", "info"),
    ("POST", _REPO + r"\.git/info/lfs/objects/batch", "batch"),
    ("POST", _REPO + r"/lfs-verify", "verify"),
    ("POST", r"/storage-complete/(?P<oid>\w+)", "complete"),
    ("PUT", r"/storage/(?P<oid>\w+)/(?P<part>\d+)", "part"),
    ("PUT", r"/storage/(?P<oid>\w+)", "put"),
    ("GET", r"/storage/(?P<oid>\w+)", "storage-get"),
    ("GET", _REPO + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", r"/_state", "state"),
    ("POST", r"/_control", "control"),
]


class Hub:
    """State and faults; survives a restart of the server that shows it."""

    handler: "type[Handler]"
    routes = ROUTES
    open_stages: tuple[str, ...] = ("put", "part", "complete", "storage-get", "yaml", "state", "control")

    def __init__(self, *, multipart_bytes: int = 0, seed: int = 0, page: int = 1000) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, int] = {}  # LFS oid -> stored size
        self.folder = Path(tempfile.mkdtemp(prefix="hub-"))
        self.discard = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.tokens = {"hf_writewritewritewrite": "write", "hf_readreadreadreadread": "read"}
        self.faults: list[Fault] = []
        self.calls: list[dict[str, Any]] = []
        self.violations: list[str] = []
        self.refused_commits = 0  # made on a head that is none any longer
        self.parents: list[str | None] = []  # the head that each commit call named
        self.puts: dict[str, int] = {}  # oid -> times its bytes were stored whole
        self.parts: dict[str, dict[int, bytes]] = {}
        self.multipart_bytes, self.page = multipart_bytes, page
        self.keep_bytes = True
        self.lfs_above = 1_000_000  # a text larger than this does not travel inside a commit
        self.starts_empty = False  # a new repo has no commit and therefore no branch
        self.knows_lfs = True  # without, checkpoints travel inside the commit, as texts do
        self.ignores: str | None = None  # *.jsonl: "always", or "by default", unless the client sends a .gitignore
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.released = threading.Event()
        self.port = 0
        self.public_host = "127.0.0.1"
        self.storage_host: str | None = None
        self.refuse_path: str | None = None  # a commit that holds this path is too large
        self._server: ThreadingHTTPServer | None = None

    # ---- life
    def start(self, port: int = 0, host: str = "127.0.0.1") -> "Hub":
        """Listen; with port 0 any free port, which is kept over a restart."""
        server_class = type("Server", (ThreadingHTTPServer,), {"daemon_threads": True, "request_queue_size": 128})
        self._server = server_class((host, port or self.port), type("Bound", (self.handler,), {"hub": self}))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.public_host}:{self.port}"

    # ---- faults
    def fail(self, stage: str, **settings: Any) -> Fault:
        """Plan a failure of `stage` ("any" for all of them)."""
        fault = Fault(stage, **settings)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all planned failures and let hung calls go."""
        with self.lock:
            self.faults.clear()
        self.released.set()
        self.released = threading.Event()

    def draw(self, stage: str, path: str) -> Fault:
        """The failure planned for this call, or one that changes nothing."""
        with self.lock:
            for fault in self.faults:
                if fault.stage not in (stage, "any") or fault.match not in unquote(path) or fault.times == 0:
                    continue
                if fault.chance < 1.0 and self.random.random() >= fault.chance:
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault(stage)

    # ---- looking
    def tree(self, repo: str = "me/run") -> dict[str, Entry]:
        commits = self.repos[repo].commits if repo in self.repos else []
        return commits[-1][2] if commits else {}

    def commits_of(self, path: str, repo: str = "me/run") -> list[str]:
        return [oid for oid, changed, _ in self.repos[repo].commits if path in changed]

    def stages(self) -> list[str]:
        return [call["stage"] for call in self.calls]

    # ---- protocol
    def repo(self, name: str) -> Repo:
        if name not in self.repos:
            raise Reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self.repos[name]

    def create(self, name: str, *, private: bool) -> dict[str, str]:
        url = f"{self.endpoint}/{name}"
        with self.lock:
            if name in self.repos:
                raise Reply(409, {"error": "You already created this model repo", "url": url})
            self.repos[name] = Repo(private)
            if not self.starts_empty:
                self.add_commit(name, {".gitattributes": make_entry(b"*.safetensors filter=lfs\n")})
        return {"url": url}

    def add_commit(self, name: str, files: dict[str, Entry]) -> str:
        """Apply a commit and check what must hold for every tree that anybody can ever see."""
        tree = self.tree(name) | files
        for path in tree:
            if path.endswith(".json") and "/checkpoints/" in path and path[:-5] + ".safetensors" not in tree:
                self.violations.append(f"{path} visible before its checkpoint")
        oid = uuid.uuid4().hex + "00000000"
        self.repos[name].commits.append((oid, tuple(files), tree))
        return oid

    def commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, str]:
        with self.lock:
            head = next((oid for oid, *_ in reversed(self.repo(name).commits)), None)
            files: dict[str, Entry] = {}
            for line in lines:
                key, value = line["key"], line["value"]
                if self.refuse_path is not None and value.get("path") == self.refuse_path:
                    raise Reply(413, {"error": "Payload too large"})
                if key == "header":
                    self.parents.append(value.get("parentCommit"))
                    if self.parents[-1] not in (None, head):
                        self.refused_commits += 1
                        raise Reply(412, {"error": "A commit has happened since. Please refresh and try again."})
                elif key == "file":
                    files[value["path"]] = make_entry(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    oid = value["oid"]
                    if oid not in self.objects:
                        raise Reply(400, {"error": f"LFS object {oid} was never uploaded"})
                    size = self.objects[oid]
                    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
                    files[value["path"]] = Entry(size, oid, git_sha1(pointer), lfs=True)
            oid = self.add_commit(name, files)
        return {"commitUrl": f"{self.endpoint}/{name}/commit/{oid}", "commitOid": oid}

    def store(self, oid: str, size: int, digest: str, fault: Fault) -> None:
        with self.lock:
            if digest != oid:
                raise Reply(400, {"error": "bytes do not match the object's name"})
            self.objects[oid] = size - (fault.corrupt == "size")
            self.puts[oid] = self.puts.get(oid, 0) + 1


WRITE_STAGES = ("create", "preupload", "commit", "batch", "verify")
Answer = tuple[Any, dict[str, str]]


class Handler(BaseHTTPRequestHandler):
    """One connection. Finds the stage, applies its fault, answers with what `on_STAGE` returns: (body, headers)."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 900
    disable_nagle_algorithm = True  # an answer goes out in two writes; the second would wait for an acknowledgement
    stage = "unknown"
    names: dict[str, str]
    fault: Fault

    def log_message(self, *_: Any) -> None:
        """Tests read `hub.calls` instead."""

    def do_GET(self) -> None:
        self.left = int(self.headers.get("Content-Length") or 0)
        self.chunked = "chunked" in (self.headers.get("Transfer-Encoding") or "")
        try:
            try:
                self.stage, self.names = self.route("GET" if self.command == "HEAD" else self.command)
                is_planned = self.stage not in ("state", "control")
                self.fault = self.hub.draw(self.stage, self.path) if is_planned else Fault("")
                self.note()
                self.check_token()
                self.apply_early(self.fault)
                body, headers = getattr(self, "on_" + self.stage.replace("-", "_"))()
                if self.fault.reset == "after":
                    self.cut()
                self.reply(200, body, headers)
            except Reply as reply:
                self.reply(reply.status, reply.body, reply.headers)
        except OSError:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self, method: str) -> tuple[str, dict[str, str]]:
        path = urlsplit(self.path).path
        for wanted, pattern, stage in self.hub.routes:
            found = re.fullmatch(pattern, path) if wanted == method else None
            if found:
                return stage, {k: unquote(v) for k, v in found.groupdict(default="main").items()}
        raise Reply(404, {"error": "no such page"})

    def note(self) -> None:
        is_authorised = "Authorization" in self.headers
        call = {"stage": self.stage, "path": self.path, "range": self.headers.get("Range"), "time": time.time()}
        with self.hub.lock:
            self.hub.calls.append(call)
            if self.stage in ("put", "part", "storage-get") and is_authorised:
                self.hub.violations.append(f"token sent to the storage host: {self.path}")

    @property
    def role(self) -> str | None:
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def check_token(self) -> None:
        if self.stage in self.hub.open_stages:
            return
        if self.role is None:
            raise Reply(401, {"error": "Invalid credentials in Authorization header"})
        if self.role != "write" and self.stage in WRITE_STAGES:
            message = "You don't have the rights to write to this repo. Use a token with write access."
            raise Reply(403, {"error": message}, {"X-Error-Message": message})

    def apply_early(self, fault: Fault) -> None:
        if fault.action is not None:
            fault.action()
        if fault.hang_s:
            self.hub.released.wait(fault.hang_s)
        if fault.reset == "before":
            self.cut()
        if fault.reset == "middle":
            self.rfile.read(min(self.left // 2, 1 << 20))
            self.cut()
        if fault.status is not None:
            if fault.early:
                self.left, self.chunked, self.close_connection = 0, False, True
            raise Reply(fault.status, {"error": fault.message}, {"X-Error-Message": fault.message, **fault.headers})

    def cut(self) -> None:
        """Reset the connection, so that the client sees no answer at all."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise ConnectionResetError("planned")

    def chunks(self, rate: float | None = None) -> Iterator[bytes]:
        """The request's body in pieces, at most `rate` bytes per second."""
        step = 1 << 20 if rate is None else max(1, int(rate / 10))
        while self.chunked:
            size = int(self.rfile.readline().split(b";")[0], 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            self.chunked = bool(size)
            yield data
        while self.left > 0:
            data = self.rfile.read(min(step, self.left))
            if not data:
                raise ConnectionResetError("body ended early")
            self.left -= len(data)
            time.sleep(len(data) / rate if rate is not None else 0.0)
            yield data

    def body(self) -> bytes:
        return b"".join(self.chunks(self.fault.rate))

    def json(self) -> Any:
        return json.loads(self.body() or b"null")

    def reply(self, status: int, body: Any, headers: dict[str, str]) -> None:
        for _ in self.chunks():  # a body left unread would be taken for the next request
            pass
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Date": formatdate(usegmt=True), **headers}.items():
            self.send_header(name, value.encode("latin-1", "replace").decode("latin-1"))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def at(self) -> tuple[str, dict[str, Entry]]:
        if self.hub.starts_empty and not self.hub.tree(self.names["repo"]) and self.stage in ("preupload", "commit"):
            return "", {}
        for oid, _, tree in reversed(self.hub.repo(self.names["repo"]).commits):
            if self.names["rev"] in ("main", oid):
                return oid, tree
        raise Reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})

    # ---- one method per stage
    def on_whoami(self) -> Answer:
        return {"type": "user", "name": "me", "auth": {"accessToken": {"role": self.role}}}, {}

    def on_create(self) -> Answer:
        order = self.json()
        kind = "datasets/" if order.get("type") == "dataset" else ""
        is_private = order.get("visibility") == "private" or bool(order.get("private"))
        return self.hub.create(f"{kind}{order.get('organization') or 'me'}/{order['name']}", private=is_private), {}

    def on_yaml(self) -> Answer:
        return {"errors": [], "warnings": []}, {}

    def on_info(self) -> Answer:
        name = self.names["repo"]
        oid, tree = self.at()
        body = {"id": name, "sha": oid, "siblings": [{"rfilename": path} for path in sorted(tree)]}
        return body | {"private": self.hub.repos[name].private, "tags": [], "downloads": 0, "likes": 0}, {}

    def on_tree(self) -> Answer:
        _, tree = self.at()
        here = urlsplit(self.path)
        start = int(parse_qs(here.query).get("cursor", ["0"])[0])
        end = start + self.hub.page
        lines = [entry.describe(path) for path, entry in sorted(tree.items())]
        url = f"{self.hub.endpoint}{here.path}?recursive=True&cursor={end}"
        return lines[start:end], {"Link": f'<{url}>; rel="next"'} if end < len(lines) else {}

    def on_paths_info(self) -> Answer:
        form = parse_qs(self.body().decode(), keep_blank_values=True)
        _, tree = self.at()
        lines = [tree[path].describe(path) for path in form.get("paths", []) if path in tree]
        if self.fault.corrupt:
            for line in lines:
                line["oid"], line["size"] = "0" * 40, line["size"] + (self.fault.corrupt == "size")
                if "lfs" in line:
                    line["lfs"] |= {"oid": "0" * 64, "size": line["size"]}
        return lines, {}

    def on_preupload(self) -> Answer:
        _, tree = self.at()
        files, order = [], self.json()
        ignores = self.hub.ignores == "always" or (self.hub.ignores == "by default" and not order.get("gitIgnore"))
        for file in order["files"]:
            path, is_binary = file["path"], b"\0" in base64.b64decode(file["sample"])
            lfs = path.endswith(LFS_SUFFIXES) or file["size"] > self.hub.lfs_above or is_binary
            line = {"path": path, "uploadMode": "lfs" if lfs and self.hub.knows_lfs else "regular"}
            line["shouldIgnore"] = ignores and path.endswith(".jsonl")
            if path in tree:
                line["oid"] = tree[path].sha256 if tree[path].lfs else tree[path].git_sha1
            files.append(line)
        return {"files": files}, {}

    def hosts(self) -> tuple[str, str]:
        """Addresses of the API and of the storage, which has another name."""
        host = (self.headers.get("Host") or "127.0.0.1").rsplit(":", 1)[0]
        other = self.hub.storage_host or {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}.get(host, host)
        return f"http://{host}:{self.hub.port}", f"http://{other}:{self.hub.port}"

    def on_batch(self) -> Answer:
        hub, order, (api, storage) = self.hub, self.json(), self.hosts()
        hub.repo(self.names["repo"])
        is_multipart, objects = False, []
        for item in order["objects"]:
            oid, size = item["oid"], item["size"]
            line: dict[str, Any] = {"oid": oid, "size": size}
            if self.fault.object_error and self.fault.object_error[0] == oid:
                line["error"] = {"code": self.fault.object_error[1], "message": self.fault.message}
            elif hub.objects.get(oid) != size:
                upload: dict[str, Any] = {"href": f"{storage}/storage/{oid}?signature=secret"}
                if hub.multipart_bytes and size > hub.multipart_bytes and "multipart" in order["transfers"]:
                    is_multipart, place = True, f"{storage}/storage/{oid}"
                    count = -(-size // hub.multipart_bytes)
                    header = {f"{i:05d}": f"{place}/{i}?partNumber={i}" for i in range(1, count + 1)}
                    header["chunk_size"] = str(hub.multipart_bytes)
                    upload = {"href": f"{api}/storage-complete/{oid}", "header": header}
                line["actions"] = {"upload": upload, "verify": {"href": f"{api}/{self.names['repo']}/lfs-verify"}}
            objects.append(line)
        return {"transfer": "multipart" if is_multipart else "basic", "objects": objects}, {}

    def on_put(self) -> Answer:
        oid, digest, size = self.names["oid"], hashlib.sha256(), 0
        temp = self.hub.folder / f"{oid}.{uuid.uuid4().hex}"
        with temp.open("wb") as file:
            for chunk in self.chunks(self.fault.rate):
                digest.update(chunk)
                size += len(chunk)
                if self.hub.keep_bytes:
                    file.write(chunk)
        self.hub.store(oid, size, digest.hexdigest(), self.fault)
        temp.replace(self.hub.folder / oid)
        return None, {"ETag": f'"{oid[:32]}"'}

    def on_part(self) -> Answer:
        data = self.body()
        self.hub.parts.setdefault(self.names["oid"], {})[int(self.names["part"])] = data
        return None, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}

    def on_complete(self) -> Answer:
        oid = self.names["oid"]
        parts = self.hub.parts.get(oid, {})
        for part in self.json()["parts"]:
            if part["etag"] != f'"{hashlib.md5(parts.get(part["partNumber"], b"?")).hexdigest()}"':
                raise Reply(400, {"error": "a part is missing"})
        data = b"".join(parts[i] for i in sorted(parts))
        self.hub.store(oid, len(data), hashlib.sha256(data).hexdigest(), self.fault)
        (self.hub.folder / oid).write_bytes(data)
        return {}, {}

    def on_verify(self) -> Answer:
        order = self.json()
        if self.hub.objects.get(order["oid"]) != order["size"]:
            raise Reply(404, {"error": "object not found or of another size"})
        return {}, {}

    def on_commit(self) -> Answer:
        lines = [json.loads(line) for line in self.body().splitlines() if line]
        self.at()
        return self.hub.commit(self.names["repo"], lines), {}

    def on_resolve(self) -> Answer:
        oid, tree = self.at()
        entry = tree.get(self.names["path"])
        if entry is None:
            raise Reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry.git_sha1}"', "Accept-Ranges": "bytes"}
        if not entry.lfs:
            return self.ranged(entry.data or b"", headers)
        headers |= self.resolve_headers(entry.sha256) | {
            "X-Linked-Size": str(entry.size),
            "X-Linked-Etag": f'"{entry.sha256}"',
        }
        headers["Location"] = f"{self.hosts()[1]}/storage/{entry.sha256}?name={quote(self.names['path'])}"
        raise Reply(302, None, headers)

    def on_storage_get(self) -> Answer:
        oid = self.names["oid"]
        return self.ranged(self.stored(oid), {"ETag": f'"{oid}"'})

    def stored(self, oid: str) -> bytes:
        """The bytes of an LFS object."""
        return (self.hub.folder / oid).read_bytes()

    def resolve_headers(self, sha256: str) -> dict[str, str]:
        """What else an answer about a large file reports."""
        return {}

    def ranged(self, data: bytes, headers: dict[str, str]) -> Answer:
        """A body, or the rest of it from the start of Range; a fault turns bytes or ends it early."""
        if self.fault.corrupt == "bytes":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.fault.corrupt == "size":
            data = data[: len(data) // 2]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start:
            begin = int(start[1])
            raise Reply(206, data[begin:], {**headers, "Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"})
        return data, headers

    # ---- for a server that runs alone: the same controls over HTTP
    def on_control(self) -> Answer:
        order = self.json()
        if order.pop("clear", False):
            self.hub.clear()
        self.hub.tokens.update(order.pop("tokens", {}))
        if order:
            self.hub.fail(order.pop("stage"), **order)
        return {"faults": len(self.hub.faults)}, {}

    def on_state(self) -> Answer:
        repos = {
            name: {
                "commits": [{"oid": oid, "paths": changed} for oid, changed, _ in repo.commits],
                "files": {path: {"size": e.size, "sha256": e.sha256} for path, e in self.hub.tree(name).items()},
            }
            for name, repo in self.hub.repos.items()
        }
        return {"repos": repos, "stages": self.hub.stages(), "violations": self.hub.violations}, {}


Hub.handler = Handler


def main(kind: type[Hub] = Hub) -> None:
    """Serve until stopped; faults come over POST /_control, what happened is at GET /_state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument("--public-host", default="127.0.0.1", help="the name by which clients reach it")
    parser.add_argument("--storage-host", help="host name put into upload addresses; default: the other loopback name")
    parser.add_argument("--token", action="append", default=[], help="a token that may write")
    args = parser.parse_args()
    hub = kind()
    hub.public_host, hub.storage_host = args.public_host, args.storage_host
    hub.tokens.update(dict.fromkeys(args.token, "write"))
    hub.start(args.port, args.host)
    print(f"listening on {args.host}:{hub.port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
