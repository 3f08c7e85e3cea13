"""R-Net, the second stage of MTCNN: arXiv 1604.02878."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["RNet"]


class RNet(nn.Module):
    """x (B, 3, 24, 24), (pixel - 127.5) / 128 -> box: offsets (B, 4); face: probabilities of no and yes (B, 2)"""

    example_inputs = (torch.zeros(2, 3, 24, 24),)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)  # the order of the weights, which come from column-major code
        x = self.prelu4(self.dense4(x))
        return {"box": self.dense5_2(x), "face": torch.softmax(self.dense5_1(x), 1)}
