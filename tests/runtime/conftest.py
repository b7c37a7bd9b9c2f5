"""The demo data, drawn once a session."""

from runs import demo_data

__all__ = ["demo_data"]
