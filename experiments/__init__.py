"""Binaries: `python -m experiments.NAME --help` says what each one does."""
