"""The round loop and what it needs: sampling, evaluation, checkpoints."""
