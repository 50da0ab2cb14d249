"""Architectures, one a file, and the presets that train them; importing this loads nothing."""
