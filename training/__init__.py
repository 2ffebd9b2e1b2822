"""Makes checkpoints: config, corpora, tokens, model, the training loop, the checkpoint series."""
