"""What these tests share: the demo data and one undisturbed run, each made once a session."""

from runs import demo_data, uncut

__all__ = ["demo_data", "uncut"]
