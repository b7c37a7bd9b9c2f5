"""The Hub of the tests with Xet storage: what the real `hf_xet` client asks for when it uploads and downloads.

A xorb is a file of chunks, each with a head of 8 bytes; a shard lists which chunks of which xorbs make a file. A commit
may only name a file that arrived complete. Faults are planned as for the Hub; stages `xet-token`, `xorb`, `shard`,
`reconstruction` and `xorb-get`. Runs alone as well: `cd tests && python -m uploads.xet_server --port 8080`.
"""

import hashlib
import re
import struct
import time
from typing import Any, ClassVar

from uploads.hub_server import _API, ROUTES, Answer, Handler, Hub, Reply, main

Segment = tuple[str, int, int]  # xorb, first chunk, end of chunks

_RECORD = 48
_VERIFIED, _DESCRIBED = 1 << 31, 1 << 30  # flags of a file: further records follow


def hex_of(record: bytes) -> str:
    """A hash as Xet prints it: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", record[:32]))


def chunks_of(xorb: bytes) -> list[tuple[int, int, bytes]]:
    """(start, end, content) of each chunk; compressed ones are refused, tests switch compression off."""
    found, at = [], 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        size, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if scheme:
            raise Reply(400, {"error": "set HF_XET_XORB_COMPRESSION_POLICY=none"})
        found.append((at, at + 8 + size, xorb[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


def files_of_shard(shard: bytes) -> list[tuple[str, list[Segment], str]]:
    """(Xet hash, segments, sha256) of each file."""
    found, at = [], _RECORD
    while shard[at : at + 32] != b"\xff" * 32:
        file, (flags, count) = hex_of(shard[at:]), struct.unpack("<2I", shard[at + 32 : at + 40])
        records = [shard[at + _RECORD * n : at + _RECORD * (n + 1)] for n in range(1, count + 1)]
        segments = [(hex_of(one), *struct.unpack("<2I", one[40:48])) for one in records]
        at += _RECORD * (1 + count * (2 if flags & _VERIFIED else 1))
        found.append((file, segments, hex_of(shard[at:]) if flags & _DESCRIBED else ""))
        at += _RECORD * bool(flags & _DESCRIBED)
    return found


class XetHandler(Handler):
    """The Hub's routes and those of Xet's storage."""

    hub: "XetHub"

    def on_xet_token(self) -> Answer:
        if self.names["kind"] == "write" and self.role != "write":
            raise Reply(403, {"error": "no right to write"})
        body = {"casUrl": self.hosts()[1], "accessToken": self.hub.xet_access, "exp": int(time.time()) + 3600}
        names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Access-Token": "accessToken", "X-Xet-Token-Expiration": "exp"}
        return body, {name: str(body[key]) for name, key in names.items()}

    def check_token(self) -> None:
        super().check_token()
        sent = self.headers.get("Authorization")
        if self.stage in ("xorb", "shard", "chunk", "reconstruction") and sent != f"Bearer {self.hub.xet_access}":
            self.hub.violations.append(f"{self.stage} with another token than the storage's")

    def on_xorb(self) -> Answer:
        name, data = self.names["hash"], self.body()
        if self.fault.corrupt == "bytes":
            data = data[:30] + bytes(20) + data[50:]
        with self.hub.lock:
            is_new = name not in self.hub.xorbs
            self.hub.xorbs[name] = self.hub.keep(name, data)
        return {"was_inserted": is_new}, {}

    def on_shard(self) -> Answer:
        for file, segments, sha256 in files_of_shard(self.body()):
            digest, size = hashlib.sha256(), 0
            for xorb, start, end in segments:
                if xorb not in self.hub.xorbs:
                    raise Reply(400, {"error": f"xorb {xorb} was never uploaded"})
                for begin, stop, content in self.hub.xorbs[xorb][start:end]:
                    digest.update(content)
                    size += stop - begin - 8
            if sha256 and digest.hexdigest() != sha256 and self.hub.keep_bytes:
                raise Reply(400, {"error": "the chunks are not those of the file"})
            with self.hub.lock:
                self.hub.files[file], self.hub.xet_hashes[sha256] = segments, file
                self.hub.objects[sha256] = size
        return {"result": 1}, {}

    def on_chunk(self) -> Answer:
        raise Reply(404, {"error": "not known"})

    def on_reconstruction(self) -> Answer:
        segments = self.hub.files.get(self.names["hash"])
        if segments is None:
            raise Reply(404, {"error": "no such file"})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "bytes=0-99999999999")
        assert wanted is not None
        first, last, at, skipped = int(wanted[1]), int(wanted[2]), 0, 0
        terms: list[dict[str, Any]] = []
        places: dict[str, list[dict[str, Any]]] = {}
        for xorb, start, end in segments:
            chunks = self.hub.xorbs[xorb]
            for number in range(start, end):
                size = chunks[number][1] - chunks[number][0] - 8
                if at + size > first and at <= last:
                    if not terms:
                        skipped = first - at
                    if terms and (terms[-1]["hash"], terms[-1]["range"]["end"]) == (xorb, number):
                        terms[-1]["range"]["end"] += 1
                        terms[-1]["unpacked_length"] += size
                    else:
                        chunk_range = {"start": number, "end": number + 1}
                        terms.append({"hash": xorb, "unpacked_length": size, "range": chunk_range})
                at += size
        if not terms:
            raise Reply(416, {"error": "beyond the end"})
        for term in terms:
            one, chunks = term["range"], self.hub.xorbs[term["hash"]]
            url_range = {"start": chunks[one["start"]][0], "end": chunks[one["end"] - 1][1] - 1}
            place = {"range": one, "url": f"{self.hosts()[1]}/xorbs/{term['hash']}", "url_range": url_range}
            places.setdefault(term["hash"], []).append(place)
        return {"offset_into_first_range": skipped, "terms": terms, "fetch_info": places}, {}

    def on_xorb_get(self) -> Answer:
        data = (self.hub.folder / self.names["hash"]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or f"bytes=0-{len(data)}")
        assert wanted is not None
        first, last = int(wanted[1]), int(wanted[2])
        part = data[first : last + 1]
        if self.fault.corrupt == "bytes":
            part = part[:30] + bytes(20) + part[50:]
        raise Reply(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"})

    def resolve_headers(self, sha256: str) -> dict[str, str]:
        if sha256 not in self.hub.xet_hashes:
            return {}
        route = f"{self.hosts()[0]}/api/models/{self.names['repo']}/xet-read-token/main"
        return {"X-Xet-Hash": self.hub.xet_hashes[sha256], "X-Xet-Refresh-Route": route}

    def stored(self, oid: str) -> bytes:
        if oid not in self.hub.xet_hashes:
            return super().stored(oid)
        segments = self.hub.files[self.hub.xet_hashes[oid]]
        return b"".join(one[2] for xorb, start, end in segments for one in self.hub.xorbs[xorb][start:end])


class XetHub(Hub):
    """A Hub whose large files go over Xet, or over LFS when the client likes."""

    handler = XetHandler
    routes: ClassVar[list[tuple[str, str, str]]] = [
        ("GET", _API + r"/xet-(?P<kind>read|write)-token/(?P<rev>[^/]+)", "xet-token"),
        ("POST", r"/v1/xorbs/default/(?P<hash>\w+)", "xorb"),
        ("POST", r"/v1/shards", "shard"),
        ("GET", r"/v1/chunks/\w+/(?P<hash>\w+)", "chunk"),
        ("GET", r"/v1/reconstructions/(?P<hash>\w+)", "reconstruction"),
        ("GET", r"/xorbs/(?P<hash>\w+)", "xorb-get"),
        *ROUTES,
    ]
    open_stages = (*Hub.open_stages, "xorb", "shard", "chunk", "reconstruction", "xorb-get")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.xorbs: dict[str, list[tuple[int, int, bytes]]] = {}
        self.files: dict[str, list[Segment]] = {}
        self.xet_hashes: dict[str, str] = {}  # by sha256
        self.xet_access = "xet_accessaccessaccess"

    def keep(self, name: str, xorb: bytes) -> list[tuple[int, int, bytes]]:
        """The chunks of a xorb; without their bytes where a test is about memory."""
        chunks = chunks_of(xorb)
        if self.keep_bytes:
            (self.folder / name).write_bytes(xorb)
            return chunks
        return [(start, end, b"") for start, end, _ in chunks]


if __name__ == "__main__":
    main(XetHub)
