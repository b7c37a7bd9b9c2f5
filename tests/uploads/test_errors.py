"""What each failure is taken for: the words and statuses of the Hub, through the wrappers of its client."""

import json
import ssl

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from seqtrack.errors import UserError
from seqtrack.uploads.hub import HubRefusal, classify
from seqtrack.uploads.target import ChangedError, FileError, scrub

LIMIT = "You have exceeded the rate limit for repository commits (128 per hour). You can retry in about 1 hour."


def answer(status: int, text: str = "", headers: dict[str, str] | None = None, method: str = "POST") -> httpx2.Response:
    request = httpx2.Request(method, "http://hub/api/models/me/run/commit/main")
    return httpx2.Response(status, text=text, headers=headers, request=request)


def wrapped(cause: Exception) -> Exception:
    error = HubRefusal(None)
    error.__cause__ = cause
    return error


ACTIONS = {"network": "retry", "rate": "wait", "account": "person", "refused": "quarantine"}
STATUSES = {
    **dict.fromkeys((408, 409, 412, 500, 502, 503, 504, 507, 524), "network"),
    429: "rate",
    **dict.fromkeys((401, 402, 403), "account"),
    **dict.fromkeys((400, 413, 422), "refused"),
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_has_one_meaning_in_every_wrapper(status: int) -> None:
    response = answer(status)
    around = RuntimeError("Error while uploading 'phase_1/a b.bin' to the Hub.")
    around.__cause__ = HfHubHTTPError("no", response=response)
    for error, path in ((HubRefusal(response), None), (around.__cause__, None), (around, "phase_1/a b.bin")):
        fault = classify(error)
        assert (fault.kind, fault.action, fault.path) == (STATUSES[status], ACTIONS[STATUSES[status]], path)
        assert "\n" not in fault.line and str(status) in fault.line


@pytest.mark.parametrize(
    ("headers", "text", "wait"),
    [
        ({"Retry-After": "17"}, "", 17.0),
        ({"retry-after": "99999"}, "", 3600.0),
        ({"Retry-After": "Sat, 21 Nov 2026 07:00:30 GMT", "Date": "Sat, 21 Nov 2026 07:00:00 GMT"}, "", 30.0),
        ({"Retry-After": "Sat, 21 Nov 2026 06:00:00 GMT", "Date": "Sat, 21 Nov 2026 07:00:00 GMT"}, "", 0.0),
        ({"RateLimit": '"api";t=55;r=0'}, "", 56.0),
        ({"RateLimit": '"api";r=949;t=55'}, "", 0.0),
        ({"ratelimit": '"api"; r=3; t=7, "resolvers"; r=0; t=9'}, "", 10.0),
        ({"Retry-After": "soon"}, "", 0.0),
        ({"X-Error-Message": "Too Many Requests", "RateLimit": '"api";r=949;t=20'}, f'{{"error": "{LIMIT}"}}', 900.0),
        ({"X-Error-Message": LIMIT, "Retry-After": "1200"}, "", 1200.0),
    ],
)
def test_how_long_the_server_asks_us_to_wait(headers: dict[str, str], text: str, wait: float) -> None:
    fault = classify(HubRefusal(answer(429, text, headers)))
    assert (fault.kind, fault.wait_s) == ("rate", wait)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx2.ReadTimeout("3 s"), "timeout"),
        (httpx2.ConnectError("refused"), "network"),
        (ConnectionError("CAS client error"), "xet"),
        (RuntimeError("Task error: cannot reach CAS"), "xet"),
        (ConnectionResetError(104, "reset"), "network"),
        (OSError("Consistency check failed"), "network"),
        (OSError(28, "No space left on device", "/x"), "setup"),
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed"), "setup"),
        (ChangedError("phase_1/a", "changed"), "changed"),
        (FileError("phase_1/a", "ignored"), "refused"),
        (UserError("a name", code="data.name"), "refused"),
        (UserError("a token file", code="token.unreadable"), "account"),
        (ValueError("LFS batch API returned errors:\nno"), "refused"),
        (ValueError("Invalid metadata in README.md.\n- no"), "refused"),
        (ValueError("preupload_info is improperly formatted"), "network"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "network"),
        (KeyError("commitOid"), "network"),
        (MemoryError(), "network"),
    ],
)
def test_what_is_no_status_has_a_kind_as_well(error: Exception, kind: str) -> None:
    assert classify(error).kind == kind


def test_a_name_that_cannot_be_resolved_is_no_fault_of_this_machine() -> None:
    error = httpx2.ConnectError("name or service not known")
    error.__cause__ = OSError(-2, "Name or service not known")
    assert classify(wrapped(error)).kind == "network"


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
@pytest.mark.parametrize(
    "cause", [ssl.SSLCertVerificationError(1, "self-signed"), Exception("[SSL: CERTIFICATE_VERIFY_FAILED]")]
)
def test_a_certificate_that_is_not_trusted_is_a_matter_of_set_up(cause: Exception, link: str) -> None:
    error = httpx2.ConnectError("no connection")
    setattr(error, link, cause)
    fault = classify(wrapped(error))
    assert (fault.kind, fault.action, "SSL_CERT_FILE" in fault.line) == ("setup", "person", True)


@pytest.mark.parametrize(
    "error", [HubRefusal(answer(407)), HubRefusal(answer(407, method="PUT")), httpx2.ProxyError("407 no")]
)
def test_a_proxy_that_wants_a_password_is_a_matter_of_set_up(error: Exception) -> None:
    assert classify(wrapped(error)).kind == "setup"
    assert classify(wrapped(httpx2.ProxyError("502 Bad Gateway"))).kind == "network"


def test_a_refusal_by_the_storage_host_is_no_fault_of_the_token() -> None:
    for status in (401, 403, 404, 410):
        expired = answer(status, "<Error><Message>Request has expired</Message></Error>", method="PUT")
        assert classify(HubRefusal(expired)).kind == "network"


def test_a_repo_that_is_not_there_is_no_object_that_is_not_there() -> None:
    lost = RuntimeError("Error while uploading 'a.bin' to the Hub.")
    for status, code, with_path, kind in (
        (401, "RepoNotFound", "repository", "repository"),
        (401, "GatedRepo", "account", "account"),
        (404, "", "changed", "repository"),
    ):
        error = HubRefusal(answer(status, "not found", {"X-Error-Code": code}))
        lost.__cause__ = error
        assert (classify(lost).kind, classify(error).kind) == (with_path, kind)


def test_no_secret_stays_in_a_line() -> None:
    token = "abcdef-not-in-the-usual-form"
    text = f"at https://s/x?X-Amz-Signature=0123abc&a=1 with Bearer hf_ABCdef123456 or {token}"
    assert scrub(text, token) == "at https://s/x?X-Amz-Signature=***&a=1 with Bearer *** or ***"
    assert token not in classify(HubRefusal(answer(400, text)), token=token).line
