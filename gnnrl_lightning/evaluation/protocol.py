"""What a run's rewards and accuracies are, and how they are named in tables, figures and pages."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gnnrl_lightning.core.numbers import MINUS, fixed

SCORE = "score"
"""Rewards that are scores of the user's own, which tables and figures do not know."""


@dataclass(frozen=True)
class Protocol:
    """What rewards and accuracies are taken by.

    Attributes:
        reward: `top1` or `kl`; on the progress bar alone, `SCORE`.
        split: What reward_split was.
        labels: Whether the images have labels; else accuracy is agreement with the unpruned network.
        images: Which images both are from, in a sentence; empty where rewards are of training images.
    """

    reward: str = "top1"
    split: str = "train"
    labels: bool = True
    images: str = ""

    @classmethod
    def of(cls, results: dict[str, Any]) -> "Protocol":
        """That of results.json; what is older than this choice had none."""
        return cls(**results.get("protocol", {}))

    @property
    def kl(self) -> bool:
        """Whether rewards are divergences."""
        return self.reward == "kl"

    @property
    def accuracy(self) -> str:
        """What accuracies are called in the head of a column."""
        return "top-1" if self.labels else "agreement"

    @property
    def notes(self) -> list[str]:
        """What a table must say of its numbers, in sentences; nothing where all is as usual."""
        agreement = (
            "Agreement with the unpruned network: the share of images that both put in one class, without labels."
        )
        return [*([] if self.labels else [agreement]), *([self.images] if self.images else [])]

    @property
    def meaning(self) -> str:
        """What a reward is, for a sentence."""
        return (
            "minus the Kullback-Leibler divergence from the unpruned network's scores, in nats"
            if self.kl
            else "minus the top-1 error in %"
        )

    @property
    def axis(self) -> str:
        """What a reward is, for an axis."""
        return f"{MINUS}KL from the unpruned network, nats" if self.kl else f"{MINUS}top-1 error, %"

    @property
    def unit(self) -> str:
        """Of a reward."""
        return "nats" if self.kl else "%"

    @property
    def digits(self) -> int:
        """Decimals of a reward in a table."""
        return 4 if self.kl else 2

    @property
    def step(self) -> float:
        """What is a round difference of rewards, for an axis."""
        return 0.01 if self.kl else 1.0

    def text(self, reward: float) -> str:
        """A reward with its unit."""
        return f"{fixed(reward, self.digits)} {self.unit}"

    def best(self, reward: float) -> str:
        """How good the best network is, on the progress bar."""
        if self.reward == SCORE:
            return f"score {reward:.4g}"
        return f"divergence {-reward:.4f} nats" if self.kl else f"top-1 {100 + reward:.2f} %"

    def share(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards as what "99 % of the best" can be said of: accuracy in %; of a divergence, e to its negative."""
        return np.exp(rewards) if self.kl else 100 + rewards
