"""Binaries: `python -m experiments.NAME --help` describes each one."""
