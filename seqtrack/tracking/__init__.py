"""A trained model at work on videos, folders of frames and cameras."""
