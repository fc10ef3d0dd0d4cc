"""Flax NNX building blocks. They hold parameters and name them; the arithmetic is in `qwen_asr_jax.ops`."""
