"""The files of a run directory, and how they are read and written; does not import torch."""
