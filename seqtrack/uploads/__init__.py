"""The sidecar that keeps a copy of every file: watches the output folder and pushes what is new to a target.

Meets training only in the output folder. Imports no torch, no numpy and nothing of the engine."""
