"""How fast packs train: what is measured of it, and what follows for a launch."""
