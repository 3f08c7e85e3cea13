"""Definitions of the networks in PyTorch, for modules of weights that come without one."""
