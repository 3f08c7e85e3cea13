"""Ops: one short module for each, saying what the op means. Nothing here imports Numba or another framework."""
