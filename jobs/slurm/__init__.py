"""SLURM in its own words: its commands, what they answer, and what a job does within it.

Nothing here imports torch or submitit, so that ``status`` answers at once.
"""
