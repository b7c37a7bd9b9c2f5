"""Configuration: what an experiment is, read at the door, checked whole, and frozen.

Floor 1. Knows keys, values, files of text and environment variables; knows data sets, encoders and targets only by
name. Must not import torch or numpy: the sidecar and `--help` read it too.
"""
