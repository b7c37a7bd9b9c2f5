"""The same protocol in other words: a server for the tests whose answers differ wherever the protocol leaves it open.

Each way of speaking has a name; `OtherHub({"packed", "closing"})` speaks both. What a client takes for granted of one
server and no protocol guarantees shows here.
"""

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from typing import Any

from uploads.hub_server import Entry, Fault, Handler, Hub, Reply, Repo

WAYS = {
    "closing": "every connection ends with its answer",
    "packed": "JSON comes gzipped, in chunks, without a length",
    "lower": "header names in lower case, and headers that nobody asked for",
    "chatty": "fields that nobody knows, and folders among the listed",
    "sparse": "only the fields that must be: no oid at preupload, no verify, no transfer",
    "created": "201 and 204 instead of 200",
    "inline": "small checkpoints travel inside the commit, as texts do",
    "once": "a batch names each object once, however often it was asked for",
    "moved": "downloads are sent on to another path of the same host by 307",
    "bare": "a HEAD tells no X-Linked-Size and no X-Linked-Etag",
    "short": "commits have names of 32 digits",
    "plain": "the parts of a large file are numbered 1, 2, 3, their size is a number",
    "empty": "a new repo has no commit and therefore no branch",
    "stubborn": "*.jsonl is ignored, whatever the client sends",
    "ignoring": "the repo's .gitignore holds *.jsonl, unless the client sends its own",
}


class OtherHub(Hub):
    """A server with ways of its own."""

    def __init__(self, ways: set[str], **settings: Any) -> None:
        assert ways <= set(WAYS), ways
        super().__init__(**settings)
        self.ways = ways
        self._branch = threading.local()

    @property
    def handler(self) -> type[Handler]:
        return OtherHandler

    def new_oid(self) -> str:
        return super().new_oid()[: 32 if "short" in self.ways else 40]

    def create(self, name: str, *, private: bool) -> dict[str, str]:
        answer = super().create(name, private=private)
        if "empty" in self.ways:
            self.repos[name].commits.clear()
        return answer

    @contextlib.contextmanager
    def without_a_branch(self) -> Iterator[None]:
        """A call that a repo without any commit answers, too."""
        self._branch.needless = True
        try:
            yield
        finally:
            self._branch.needless = False

    def at(self, repo: Repo, revision: str) -> tuple[str, dict[str, Entry]]:
        if not repo.commits and getattr(self._branch, "needless", False):
            return "", {}
        return super().at(repo, revision)


class OtherHandler(Handler):
    """Answers as `ways` say."""

    hub: OtherHub

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        ways, headers = self.hub.ways, dict(headers or {})
        stage = self.stage()
        if "created" in ways and status == 200:
            status = {"create": 201, "commit": 201, "put": 201, "part": 204, "verify": 202}.get(stage, 200)
        if "lower" in ways:
            headers |= {"RateLimit": '"api";r=949;t=200', "X-Request-Id": "Root=1", "Vary": "Origin"}
            headers = {name.lower(): value for name, value in headers.items()}
        if "closing" in ways:
            headers["Connection"] = "close"
            self.close_connection = True
        if "packed" in ways and isinstance(body, (dict, list)) and self.command != "HEAD":
            self.reply_packed(status, body, headers)
        else:
            super().reply(status, body, headers)

    def reply_packed(self, status: int, body: Any, headers: dict[str, str]) -> None:
        """JSON, gzipped, in two chunks."""
        for _ in self.chunks():
            pass
        data = gzip.compress(json.dumps(body).encode())
        self.send_response(status)
        for name, value in {**headers, "Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in (data[:20], data[20:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def stage(self) -> str:
        method = {"HEAD": "GET"}.get(self.command, self.command)
        try:
            return self.route(method)[0]
        except Reply:
            return "unknown"

    def route(self, method: str) -> tuple[str, dict[str, str]]:
        if "moved" in self.hub.ways and method == "GET" and self.path.startswith("/resolve-cache/"):
            self.path, moved = self.path.removeprefix("/resolve-cache"), True
        else:
            moved = False
        stage, names = super().route(method)
        if stage == "resolve" and "moved" in self.hub.ways and not moved:
            raise Reply(307, None, {"Location": f"/resolve-cache{self.path}", "X-Repo-Commit": "0" * 40})
        return stage, names

    def chatty(self, answer: Any) -> Any:
        """The answer with more in it than anybody knows."""
        if isinstance(answer, list):
            return [self.chatty(item) for item in answer]
        return {**answer, "_id": "621ffdc0", "more": {"deep": [1, None]}} if isinstance(answer, dict) else answer

    def on_whoami(self, names: dict[str, str], fault: Fault | None) -> Any:
        body, headers = super().on_whoami(names, fault)
        return ({"name": body["name"]} if "sparse" in self.hub.ways else self.own(body)), headers

    def own(self, body: Any) -> Any:
        return self.chatty(body) if "chatty" in self.hub.ways else body

    def on_info(self, names: dict[str, str], fault: Fault | None) -> Any:
        if "empty" in self.hub.ways and not self.hub.repo(names["repo"]).commits and "/revision/" not in self.path:
            return {"id": names["repo"], "sha": None}, {}
        body, headers = super().on_info(names, fault)
        return ({"id": body["id"], "sha": body["sha"]} if "sparse" in self.hub.ways else self.own(body)), headers

    def on_tree(self, names: dict[str, str], fault: Fault | None) -> Any:
        body, headers = super().on_tree(names, fault)
        return self.with_folders(body), headers

    def on_paths_info(self, names: dict[str, str], fault: Fault | None) -> Any:
        body, headers = super().on_paths_info(names, fault)
        return self.with_folders(body), headers

    def with_folders(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if "chatty" not in self.hub.ways:
            return lines
        more = {"xetHash": "ab" * 32, "lastCommit": None, "securityFileStatus": None}
        folders = sorted({line["path"].rsplit("/", 1)[0] for line in lines if "/" in line["path"]})
        return [{"type": "directory", "oid": "1" * 40, "size": 0, "path": path} for path in folders] + [
            {**line, **(more if "lfs" in line else {})} for line in lines
        ]

    def on_preupload(self, names: dict[str, str], fault: Fault | None) -> Any:
        order = self.json()
        self.json = lambda: order  # type: ignore[method-assign]
        with self.hub.without_a_branch():
            body, headers = super().on_preupload(names, fault)
        for line, file in zip(body["files"], order["files"], strict=True):
            if "sparse" in self.hub.ways:
                line.pop("oid", None)
            if "inline" in self.hub.ways:
                line["uploadMode"] = "regular"
            ignoring = ("ignoring" in self.hub.ways and not order.get("gitIgnore")) or "stubborn" in self.hub.ways
            line["shouldIgnore"] = ignoring and file["path"].endswith(".jsonl")
        del self.json  # the next call on this connection reads its own
        return self.own(body), headers

    def on_batch(self, names: dict[str, str], fault: Fault | None) -> Any:
        body, headers = super().on_batch(names, fault)
        if "once" in self.hub.ways:
            body["objects"] = list({item["oid"]: item for item in body["objects"]}.values())
        if "sparse" in self.hub.ways:
            del body["transfer"]
            for item in body["objects"]:
                item.get("actions", {}).pop("verify", None)
        if "plain" in self.hub.ways:
            for item in body["objects"]:
                upload = item.get("actions", {}).get("upload", {})
                parts = {str(int(name)): url for name, url in upload.get("header", {}).items() if name.isdigit()}
                if parts:
                    upload["header"] = {**parts, "chunk_size": int(upload["header"]["chunk_size"])}
        return self.own(body), headers

    def on_commit(self, names: dict[str, str], fault: Fault | None) -> Any:
        with self.hub.without_a_branch():
            body, headers = super().on_commit(names, fault)
        return self.own(body), headers

    def on_resolve(self, names: dict[str, str], fault: Fault | None) -> Any:
        try:
            return super().on_resolve(names, fault)
        except Reply as reply:
            if "bare" in self.hub.ways:
                reply.headers = {k: v for k, v in reply.headers.items() if not k.startswith("X-Linked-")}
            raise
