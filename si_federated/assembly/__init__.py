"""From names to parts: registries, model, process, privacy."""
