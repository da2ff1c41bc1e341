"""The weights of models in files: checkpoints, Keras files, adapters."""
