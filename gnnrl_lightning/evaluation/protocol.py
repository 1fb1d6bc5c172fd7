"""What a run's rewards and accuracies are, and how they are named in tables, figures and pages."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gnnrl_lightning.core.numbers import MINUS, fixed

SCORE = "score"
"""Rewards that are scores of the user's own."""


@dataclass(frozen=True)
class Protocol:
    """What rewards and accuracies are taken by.

    Attributes:
        reward: `top1`, `kl`, or from Python `SCORE`.
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
    def top1(self) -> bool:
        """Whether rewards are accuracies, but for 100 %."""
        return self.reward == "top1"

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
        return {
            "kl": "minus the Kullback-Leibler divergence from the unpruned network's scores, in nats",
            SCORE: "the score that was given",
        }.get(self.reward, "minus the top-1 error in %")

    @property
    def axis(self) -> str:
        """What a reward is, for an axis."""
        return {"kl": f"{MINUS}KL from the unpruned network, nats", SCORE: "score"}.get(
            self.reward, f"{MINUS}top-1 error, %"
        )

    @property
    def unit(self) -> str:
        """Of a reward."""
        return {"kl": "nats", SCORE: ""}.get(self.reward, "%")

    @property
    def digits(self) -> int:
        """Decimals of a reward in a table."""
        return 2 if self.top1 else 4

    @property
    def step(self) -> float:
        """What is a round difference of rewards, for an axis."""
        return 1.0 if self.top1 else 0.01

    def text(self, reward: float) -> str:
        """A reward with its unit."""
        return f"{fixed(reward, self.digits)} {self.unit}".rstrip()

    def best(self, reward: float) -> str:
        """How good the best network is, on the progress bar."""
        if self.reward == SCORE:
            return f"score {reward:.4g}"
        return f"divergence {-reward:.4f} nats" if self.kl else f"top-1 {100 + reward:.2f} %"

    def share(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards as what "99 % of the best" can be said of: accuracy in %; of a divergence, e to its negative."""
        return np.exp(rewards) if self.kl else 100 + rewards
