"""A sweep becomes tasks and comes back: its plan, its files, its executors, its status."""
