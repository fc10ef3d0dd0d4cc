"""Audio in: files, bytes and arrays to 16 kHz mono float32, and the arithmetic of frames and tokens. NumPy only."""
