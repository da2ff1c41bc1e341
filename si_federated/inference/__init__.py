"""Trained models, for use and for export."""
