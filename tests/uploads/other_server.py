"""The same protocol in other words: a server whose answers differ wherever the protocol leaves it open.

Each way of speaking has a name; `OtherHub({"plain", "moved"})` speaks both. What a client takes for granted of one
server and no protocol guarantees shows here.
"""

import gzip
import json
from typing import Any

from uploads.hub_server import Answer, Entry, Handler, Hub, Reply

WAYS = {
    "closing": "every connection ends with its answer; header names in lower case; 201 and 204 instead of 200",
    "packed": "JSON comes gzipped, in chunks, without a length, with fields that nobody knows",
    "sparse": "only the fields that must be: no oid at preupload, no verify, no transfer; each object is named once",
    "inline": "small checkpoints travel inside the commit, as texts do",
    "moved": "downloads are sent on to another path of the same host by 307; a HEAD tells no X-Linked-*",
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

    @property
    def handler(self) -> type[Handler]:
        return OtherHandler

    def create(self, name: str, *, private: bool) -> dict[str, str]:
        answer = super().create(name, private=private)
        if "empty" in self.ways:
            self.repos[name].commits.clear()
        return answer


class OtherHandler(Handler):
    """Answers as `ways` say."""

    hub: OtherHub

    def at(self) -> tuple[str, dict[str, Entry]]:
        if not self.hub.repo(self.names["repo"]).commits and self.stage in ("preupload", "commit"):
            return "", {}  # calls that a repo without any commit answers, too
        return super().at()

    def reply(self, status: int, body: Any, headers: dict[str, str]) -> None:
        if "closing" in self.hub.ways:
            headers = {name.lower(): value for name, value in {**headers, "RateLimit": '"api";r=949;t=200'}.items()}
            headers["connection"], self.close_connection = "close", True
            codes = {"create": 201, "commit": 201, "put": 201, "part": 204, "verify": 202}
            status = codes.get(self.stage, 200) if status == 200 else status
        if "packed" not in self.hub.ways or not isinstance(body, (dict, list)) or self.command == "HEAD":
            super().reply(status, body, headers)
            return
        for _ in self.chunks():
            pass
        data = gzip.compress(json.dumps(_with_more(body)).encode())
        self.send_response(status)
        for name, value in {**headers, "Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in (data[:20], data[20:], b""):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def on_info(self) -> Answer:
        if "empty" in self.hub.ways and not self.hub.tree(self.names["repo"]) and "/revision/" not in self.path:
            return {"id": self.names["repo"], "sha": None}, {}
        body, headers = super().on_info()
        return ({"id": body["id"], "sha": body["sha"]} if "sparse" in self.hub.ways else body), headers

    def on_preupload(self) -> Answer:
        order = self.json()
        self.json = lambda: order  # type: ignore[method-assign]
        body, headers = super().on_preupload()
        del self.json  # the next call on this connection reads its own
        is_ignoring = "stubborn" in self.hub.ways or ("ignoring" in self.hub.ways and not order.get("gitIgnore"))
        for line in body["files"]:
            line["shouldIgnore"] = is_ignoring and line["path"].endswith(".jsonl")
            if "sparse" in self.hub.ways:
                line.pop("oid", None)
            if "inline" in self.hub.ways:
                line["uploadMode"] = "regular"
        return body, headers

    def on_batch(self) -> Answer:
        body, headers = super().on_batch()
        if "sparse" in self.hub.ways:
            del body["transfer"]
            body["objects"] = list({item["oid"]: item for item in body["objects"]}.values())
            for item in body["objects"]:
                item.get("actions", {}).pop("verify", None)
        return body, headers

    def on_resolve(self) -> Answer:
        if "moved" in self.hub.ways and "?moved" not in self.path:
            raise Reply(307, None, {"Location": f"{self.path}?moved", "X-Repo-Commit": "0" * 40})
        try:
            return super().on_resolve()
        except Reply as reply:
            if "moved" in self.hub.ways:
                reply.headers = {k: v for k, v in reply.headers.items() if not k.startswith("X-Linked-")}
            raise


def _with_more(answer: Any) -> Any:
    """The answer with more in it than anybody knows."""
    if isinstance(answer, list):
        return [_with_more(item) for item in answer]
    return {**answer, "_id": "621ffdc0", "more": {"deep": [1, None]}} if isinstance(answer, dict) else answer
