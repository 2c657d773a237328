"""Launched sweeps: launch, find, monitor, resume, reuse, cancel, collect."""
