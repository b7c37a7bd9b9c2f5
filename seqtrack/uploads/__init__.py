"""The sidecar that keeps a copy of every file on a target. Imports no torch, no numpy and no training code."""
