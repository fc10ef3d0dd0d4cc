"""Whole tasks: audio inputs in, results out."""
