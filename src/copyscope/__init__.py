"""Watch a language model learn to copy."""
