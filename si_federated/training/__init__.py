"""The round loop, with sampling, evaluation and checkpoints."""
