"""Figures of a dataset: which axis goes where, means and bands, panels and legends."""
