"""A corpus made of the docstrings of installed packages."""
