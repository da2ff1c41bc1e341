"""Measurements of a model while it trains."""
