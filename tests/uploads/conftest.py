"""Fixtures of the uploader's unit tests."""

from uploads.harness import hub, inline, output

__all__ = ["hub", "inline", "output"]
