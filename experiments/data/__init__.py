"""Data sets with nothing to download; importing this loads nothing."""
