"""What these tests share: a Hub and an output folder."""

from uploads.harness import hub, inline, output
from uploads.http_proxy import proxy

__all__ = ["hub", "inline", "output", "proxy"]
