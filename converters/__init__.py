"""Converters: everything that knows PyTorch or another framework, one file per kind of checkpoint."""
