"""Optimizers over stacked parameters: one update for all configs, each with its own settings.

- ``build``: the optimizer of a pack, by its settings;
- ``stacked``: the interface, and what the stacked ones have in common; these are ``sgd``, ``adam``,
  ``rmsprop``, ``lion`` and ``muon``;
- ``torch_optimizer``: any class of torch.optim, for one config;
- ``update_rules``: by whose updates learning rates are scaled;
- ``view``: the argument ``opt`` of grabs.
"""
