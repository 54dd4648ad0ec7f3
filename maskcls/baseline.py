"""The original project's baseline network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BaseModel(nn.Module):
    """Three convolutions: conv-relu, conv-relu-maxpool, conv-relu-maxpool-dropout, average, linear.

    Takes (N, 3, H, W) float32 of any size from 32 pixels, answers (N, num_classes) logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=7, stride=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=1)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, stride=1)
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.conv1(images))
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = self.dropout(nn.functional.max_pool2d(torch.relu(self.conv3(x)), 2))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
