"""What the user writes: hyperparameters, axes, functions; and how a spec is read."""
