"""Central training of a language model to start from."""
