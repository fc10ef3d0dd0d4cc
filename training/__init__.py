"""Trains the demonstration model on synthetic speech. Outside the runtime package: needs espeak-ng and the extra `train`."""
