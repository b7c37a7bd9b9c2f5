"""Checkpoint files with their manifests, and the JSON files next to them; listed and verified without torch."""
