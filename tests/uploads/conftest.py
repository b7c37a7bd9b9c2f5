"""Fixtures of the uploader's unit tests."""

from uploads.fixtures import hub, inline, output

__all__ = ["hub", "inline", "output"]
