"""What these tests share: the demo data and one undisturbed run, each made once a session."""

from runs import demo_data, uninterrupted

__all__ = ["demo_data", "uninterrupted"]
