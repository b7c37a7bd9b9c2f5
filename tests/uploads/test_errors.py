"""What each failure is taken for: the words and statuses of the Hub, through the wrappers of its client."""

import json
from dataclasses import dataclass, field

import pytest

from seqtrack.errors import UserError
from seqtrack.uploads.errors import HubRefusal, Unreachable, classify, scrub
from seqtrack.uploads.target import ChangedError, IgnoredError, MismatchError


@dataclass
class Response:
    status_code: int
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class HfHubHTTPError(OSError):
    """The library's error in shape: it carries the response."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"Client error {response.status_code}")
        self.response = response


LIMIT = "You have exceeded the rate limit for repository commits (128 per hour). You can retry in about 1 hour."


@pytest.mark.parametrize(
    ("status", "text", "kind", "action"),
    [
        *[(code, "", "network", "retry") for code in (408, 500, 502, 503, 504, 507, 524)],
        (429, "Too many requests", "rate", "wait"),
        (429, LIMIT, "commits", "wait"),
        (409, "", "network", "retry"),
        (412, "A commit has happened since", "network", "retry"),
        (401, "", "token", "person"),
        (403, "no right to write", "token", "person"),
        (403, "private storage limit reached", "quota", "person"),
        (403, "You have exceeded your storage", "quota", "person"),
        (402, "payment required", "quota", "person"),
        (404, "Repository not found", "repository", "person"),
        (413, "Payload too large", "refused", "quarantine"),
        (400, "LFS object was never uploaded", "refused", "quarantine"),
        (422, "", "refused", "quarantine"),
    ],
)
@pytest.mark.parametrize("shape", ["ours", "library", "wrapped"])
def test_a_status_has_one_meaning_in_every_wrapper(status: int, text: str, kind: str, action: str, shape: str) -> None:
    error: BaseException = HubRefusal(status, "commit", {}, text)
    if shape != "ours":
        error = HfHubHTTPError(Response(status, text))
    if shape == "wrapped":
        inner, error = error, RuntimeError("Error while uploading 'phase_1/a b.bin' to the Hub.")
        error.__cause__ = inner
    fault = classify(error)
    assert (fault.kind, fault.action, fault.status) == (kind, action, status)
    assert fault.path == ("phase_1/a b.bin" if shape == "wrapped" else None)
    assert "\n" not in fault.line


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"retry-after": "99999"}, 3600.0),
        ({"Retry-After": "Sat, 21 Nov 2026 07:00:30 GMT", "Date": "Sat, 21 Nov 2026 07:00:00 GMT"}, 30.0),
        ({"Retry-After": "Sat, 21 Nov 2026 06:00:00 GMT", "Date": "Sat, 21 Nov 2026 07:00:00 GMT"}, 0.0),
        ({"RateLimit": '"api";r=0;t=55'}, 56.0),
        ({"RateLimit": '"api";r=949;t=55'}, 0.0),
        ({"RateLimit": '"api";t=55;r=0'}, 56.0),
        ({"ratelimit": '"api"; r=3; t=7, "resolvers"; r=0; t=9'}, 10.0),
        ({"Retry-After": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_how_long_the_server_asks_us_to_wait(headers: dict[str, str], wait: float) -> None:
    assert classify(HubRefusal(429, "commit", headers, "")).wait_s == wait


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unreachable("commit", "cut off", timed_out=False), "network"),
        (Unreachable("commit", "no answer for 3 s", timed_out=True), "timeout"),
        (ConnectionError("CAS client error"), "xet"),
        (ConnectionResetError(104, "reset"), "local"),
        (OSError(28, "No space left on device", "/x"), "local"),
        (ChangedError("phase_1/a"), "changed"),
        (UserError("a name", code="data.name"), "refused"),
        (ValueError("LFS batch API returned errors:\nno"), "refused"),
        (ValueError("Invalid metadata in README.md.\n- no"), "refused"),
        (ValueError("preupload_info is improperly formatted"), "network"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "network"),
        (IgnoredError("phase_1/a", "ignored"), "refused"),
        (MismatchError("phase_1/a", "other bytes"), "mismatch"),
        (KeyError("commitOid"), "network"),
        (RuntimeError("Task error: cannot reach CAS"), "xet"),
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed"), "setup"),
        (MemoryError(), "died"),
    ],
)
def test_what_is_no_status_has_a_kind_as_well(error: Exception, kind: str) -> None:
    assert classify(error).kind == kind


def test_the_limit_of_commits_is_found_in_the_body_where_the_header_has_less() -> None:
    headers = {"X-Error-Message": "Too Many Requests", "RateLimit": '"api";r=949;t=200'}
    assert classify(HubRefusal(429, "commit", headers, f'{{"error": "{LIMIT}"}}')).kind == "commits"
    assert classify(HubRefusal(429, "commit", headers, '{"error": "slowly"}')).kind == "rate"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_by_the_storage_host_is_no_fault_of_the_token(status: int) -> None:
    fault = classify(HubRefusal(status, "storage", {}, "<Error><Message>Request has expired</Message></Error>"))
    assert (fault.kind, fault.action) == ("network", "retry")
    assert classify(HubRefusal(status, "commit", {}, "no")).action in ("person", "quarantine")
    assert classify(HubRefusal(403, "storage", {}, "over your quota")).kind == "quota"


def test_a_repo_that_is_not_there_is_known_by_its_code_whatever_the_status() -> None:
    gone = HubRefusal(401, "listing", {"X-Error-Code": "RepoNotFound"}, "")
    assert classify(gone).kind == "repository"
    assert classify(HubRefusal(401, "listing", {"X-Error-Code": "GatedRepo"}, "")).kind == "token"


def test_an_object_that_is_not_there_is_not_a_repo_that_is_not_there() -> None:
    lost = RuntimeError("Error while uploading 'a.bin' to the Hub.")
    lost.__cause__ = HfHubHTTPError(Response(404, "object not found"))
    assert classify(lost).kind == "mismatch"
    lost.__cause__ = HfHubHTTPError(Response(404, "", {"X-Error-Code": "RepoNotFound"}))
    assert classify(lost).kind == "repository"


def test_no_secret_stays_in_a_line() -> None:
    token = "abcdef-not-in-the-usual-form"
    text = f"at https://s/x?X-Amz-Signature=0123abc&a=1 with Bearer hf_ABCdef123456 or {token}"
    for secret in ("0123abc", "hf_ABCdef123456", "ABCdef", token):
        assert secret not in scrub(text, token)
    assert "a=1" in scrub(text, token)
    assert token not in classify(HubRefusal(400, "commit", {}, text), token=token).line
