"""SLURM: its commands, the states of jobs and tasks, sbatch scripts, and checks of a cluster.

Nothing here but ``script`` imports submitit, and nothing imports torch, so that ``status`` is fast.
"""
