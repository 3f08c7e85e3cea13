"""Graphs of traced modules against the modules."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from fp8np.graph import Graph, leaves
from fp8np.interpret import interpret


def randomized(module: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics that are not those of a fresh BatchNorm."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def assert_same(graph: Graph, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The graph's outputs are the module's, within 1e-5 of the largest; inputs go by the order of the arguments."""
    tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    with torch.no_grad():
        expected = [t.numpy() for t in torch.utils._pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    got = list(leaves(interpret(graph, {value.name: t.numpy() for value, t in zip(graph.inputs, tensors, strict=True)})))
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(initial=1e-30), rtol=0, strict=True)


def exported(module: nn.Module, *args: Any, **options: Any) -> Any:
    """As a user of PyTorch gets it; PyTorch warns about its own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, *args, **options)
