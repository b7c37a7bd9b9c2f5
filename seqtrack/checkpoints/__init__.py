"""What a run keeps: containers with their manifests, written whole, listed and verified without torch."""
