"""Configuration: keys, environment variables, files, and rules between them.

Must not import torch or numpy: the sidecar and `--help` read it too.
"""
