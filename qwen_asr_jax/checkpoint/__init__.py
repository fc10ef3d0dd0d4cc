"""Checkpoints in and out: the key map, safetensors reading, orbax directories, random checkpoints in the real format."""
