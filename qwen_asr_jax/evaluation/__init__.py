"""Accuracy against references: manifests, transcripts kept as they come, word error rates and their tables."""
