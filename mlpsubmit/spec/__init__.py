"""Specs: hyperparameters, axes, functions; reading and checking them; keys of configs."""
