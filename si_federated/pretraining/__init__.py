"""Central training of an initial language model."""
