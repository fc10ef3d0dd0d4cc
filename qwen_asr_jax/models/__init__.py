"""The model: audio encoder, text decoder, and the pure-function view of them that the engine jits."""
