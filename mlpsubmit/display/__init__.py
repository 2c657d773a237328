"""Text and HTML for terminals and notebooks, made from plain values."""
