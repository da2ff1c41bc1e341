"""The parts of `experiments.benchmark`: contestants, sections, tables."""
