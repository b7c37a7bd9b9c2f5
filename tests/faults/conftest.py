"""What these tests share: a Hub and an output folder."""

from uploads.harness import hub, inline, output

__all__ = ["hub", "inline", "output"]
