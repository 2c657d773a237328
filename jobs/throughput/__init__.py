"""Throughput: how fast packs train, and how long a launch will take."""
