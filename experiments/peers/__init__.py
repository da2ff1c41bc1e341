"""Other libraries as contestants, each in a Python environment of its own."""
