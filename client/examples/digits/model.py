"""A convolutional network for 8 x 8 digits, and one step of its training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Two convolutions and a linear layer: 20 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(512, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, 8, 8) -> logits (B, 10)."""
        logits: torch.Tensor = self.layers(images)
        return logits


def train_step(net: Net, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> float:
    """One step; the loss."""
    net.train()
    optimizer.zero_grad()
    loss = functional.cross_entropy(net(images), labels)
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def accuracy(net: Net, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that are recognised."""
    net.eval()
    return float((net(images).argmax(dim=1) == labels).float().mean())
