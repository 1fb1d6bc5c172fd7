"""A network with two inputs."""

import torch
from torch import Tensor, nn


class TwoInputs(nn.Module):
    """Takes an image and a keyword argument, and gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.depth = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor, *, depth: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        both = torch.cat([self.image(image).mean((2, 3)), self.depth(depth).mean((2, 3))], 1)
        return {"scores": scale * self.head(both)}
