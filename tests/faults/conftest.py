"""What these tests share: demo data, one undisturbed run, each made once a session; a Hub and an output folder."""

from runs import demo_data, uninterrupted
from uploads.harness import hub, output

__all__ = ["demo_data", "hub", "output", "uninterrupted"]
