"""What a network is worth: how often it is right, or how far it is from the unpruned one."""

import math
from collections.abc import Callable
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import call, tensors_in
from gnnrl_lightning.core.samples import Samples

Score = Callable[[nn.Module], float]
"""What a network in eval mode is worth, on its device; higher is better."""

_POSITIONS = 64
"""Of a map of scores, as of segmentation, so many positions an image are looked at."""
_WORST = 1000.0


@torch.no_grad()  # not inference mode: what a forward caches would be of no use for training
def correct(model: nn.Module, images: Samples, labels: Tensor, batch_size: int) -> int:
    """Number of images whose highest score is their label, among the first that the labels, [N], are for.

    Raises:
        UserError: If the network does not give one score a class.
    """
    model.eval()
    hits = 0
    for start in range(0, len(labels), batch_size):
        batch = labels[start : start + batch_size]
        scores = call(model, images[start : start + len(batch)])
        if not isinstance(scores, Tensor) or scores.dim() != 2 or batch.dim() != 1:
            what = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(
                f"the network gives {what} for targets of shape {tuple(batch.shape)}; top-1 wants scores [N, classes] "
                f"and classes [N]: give score=<function of a network>, or reward=kl."
            )
        if batch.is_floating_point():
            raise UserError("targets are floating point numbers and no classes; give score=<function of a network>.")
        if scores.shape[1] == 1:  # that of the one of two classes
            hits += int(((scores[:, 0] > 0) == (batch > 0)).sum())
            continue
        if start == 0 and int(labels.max()) >= scores.shape[1]:
            raise UserError(
                f"a target is class {int(labels.max())}, but the network gives {scores.shape[1]} scores; classes are "
                f"numbered from 0."
            )
        hits += int((scores.argmax(1) == batch).sum())
    return hits


@torch.no_grad()
def log_probabilities(model: nn.Module, images: Samples, count: int, batch_size: int) -> list[Tensor]:
    """What a network says of the first `count` images: log-softmax along dimension 1 of every output that has one.

    Returns:
        One tensor an output, float32 [count, classes], or [count, classes, positions] of a map of scores.
    """
    model.eval()
    starts = range(0, count, batch_size)
    parts = [_log_softmax(call(model, images[at : min(at + batch_size, count)])) for at in starts]
    return [torch.cat(of_output) for of_output in zip(*parts, strict=True)]


def _log_softmax(outputs: object) -> list[Tensor]:
    found = []
    for output in tensors_in(outputs):
        if output.is_floating_point() and output.dim() > 1:
            if output.dim() > 2:
                output = output.flatten(2)
                places = torch.linspace(0, output.shape[2] - 1, min(_POSITIONS, output.shape[2])).long()
                output = output[:, :, places.to(output.device)]
            found.append(_of_two(output.float()).log_softmax(1))
    if not found:
        raise UserError(
            "the network has no output of floating point numbers [N, classes, …] to take a divergence of; give "
            "score=<function of a network>."
        )
    return found


def _of_two(scores: Tensor) -> Tensor:
    """One score alone is that of the one of two classes: its sigmoid is the softmax of both."""
    return torch.cat([scores, torch.zeros_like(scores)], 1) if scores.shape[1] == 1 else scores


def divergence(expected: list[Tensor], given: list[Tensor]) -> float:
    """KL(expected ‖ given) in nats, mean over images and positions, sum over outputs; see `log_probabilities`."""
    total = 0.0
    for target, other in zip(expected, given, strict=True):
        each = F.kl_div(other, target, reduction="none", log_target=True).sum(1)
        # A network whose scores are no numbers has a bad reward, as it has with top-1, and not one no agent can take.
        total += float(each.double().nan_to_num(nan=_WORST, posinf=_WORST).mean())
    return total


def number_of(score: object) -> float:
    """The number that a user's score has given.

    Raises:
        UserError: If it is none.
    """
    if isinstance(score, Tensor) and score.numel() == 1:
        score = score.item()
    if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
        what = str(score) if isinstance(score, Real) else f"a {type(score).__name__}"
        raise UserError(f"score gave {what}; it must give one finite number for a network, higher is better.")
    return float(score)
