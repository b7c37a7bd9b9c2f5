"""Fixtures of the uploader's unit tests."""

from uploads.fixtures import hub, output

__all__ = ["hub", "output"]
