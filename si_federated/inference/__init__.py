"""Trained models, ready to use or to export."""
