"""Weights of models in files: checkpoints, Keras files, adapters."""
