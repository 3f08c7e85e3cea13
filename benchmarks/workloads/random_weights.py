"""Weights for networks of which no checkpoint is at hand: speed does not depend on their values, as long as those are plausible."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["quiet", "settled"]


def quiet(norm: nn.Module) -> nn.Module:
    """The last BatchNorm of a residual branch, with the small weights that training gives it.

    With weights of 1 a deep random network multiplies every rounding error until nothing can be compared.
    """
    nn.init.constant_(norm.weight, 0.25)
    return norm


def settled(network: nn.Module, size: int, seed: int = 0) -> nn.Module:
    """`network` in eval mode with random weights that keep its activations in the range that trained ones have.

    Convolutions by He's initialization, affine parameters of BatchNorm around what they were, and its running statistics as data give
    them: pictures of `size` pixels are passed once in training mode. Without that, sums along residual branches would explode.
    """
    rng = torch.Generator().manual_seed(seed)
    norms = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=rng)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=rng)
            nn.init.normal_(layer.bias, std=0.1, generator=rng)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.data *= torch.empty_like(layer.weight).uniform_(0.5, 1.5, generator=rng)
            nn.init.normal_(layer.bias, std=0.2, generator=rng)
            norms.append(layer)
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = None  # the statistics become those of the data, not a blend with 0 and 1
    with torch.no_grad():
        network.train()(torch.randn(8, 3, size, size, generator=rng))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return network.eval()
