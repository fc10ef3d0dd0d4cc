"""Native code behind `ops`: kernels that a plain XLA program cannot match, one folder per platform."""
