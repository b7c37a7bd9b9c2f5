"""The items of `scripts/gpu_check.py`."""
