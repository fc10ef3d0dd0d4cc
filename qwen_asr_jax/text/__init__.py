"""Text in and out: languages, tokenizer, prompt, parsing of what the model writes. No arrays, no JAX."""
