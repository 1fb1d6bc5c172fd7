"""Moments of what a reader reads, and how far solutions from them can be trusted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gnnrl_lightning.reconstruction.readers import Reader

_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_NOTHING = 1e-9
"""Part of an error that counts as none."""
_HONEST = 2.0
"""Up to how much optimism errors that G tells are to be believed."""
_SMALL = 1e-3
"""Part of what there is to lose that is small whatever it is on other images."""
_FLOOR = 1e-6
_TRIAL_ROWS = 64
_RISEN = 1.05
"""How far an error must rise above its least before no larger ridge is tried."""
_WORTH = 0.05
"""Of what can be gained, what a smaller ridge may miss: the whole of the images wants a smaller one than their half."""


@dataclass
class Moments:
    """What is known of one reader.

    Where a weight has so many columns that their moments would not fit into memory, or images do not give two samples
    for each, the moments are those of the channels: the mean over taps of E[x_t x_tᵀ].

    Attributes:
        reader: The weight.
        gram: Second moments of the columns, about their mean where something behind can take a change of the mean;
            float64 [blocks, D, D] with D = channels · taps, or D = channels where `mixed`.
        mean: First moments, float64 [blocks, channels, taps].
        sensitivity: A factor F of S = Fᵀ F, float64 [blocks, k, rows].
        mixed: Whether the moments are those of channels.
        samples: Positions that they were taken from.
        ridge: λ over G's diagonal with which solutions hold best on images that they were not made from;
            None where none is better there than the weights as they are.
        optimism: How much larger an error is on other images than the one that G tells.
        share: What a solution leaves there of the error of weights as they are.
    """

    reader: Reader
    gram: Tensor
    mean: Tensor
    sensitivity: Tensor
    mixed: bool
    samples: int
    ridge: float | None
    optimism: float
    share: float

    @property
    def tells(self) -> bool:
        """Whether G tells the errors of solutions: not where these were fitted by heart, from too few samples."""
        return self.ridge is not None and self.optimism <= _HONEST

    def flat(self, matrix: Tensor) -> Tensor:
        """A weight [blocks, rows, channels, taps] as [blocks, R, D]: taps are rows of their own where mixed."""
        return matrix.transpose(2, 3).flatten(1, 2) if self.mixed else matrix.flatten(2)

    def unflat(self, flat: Tensor) -> Tensor:
        """The inverse of `flat`."""
        if self.mixed:
            return flat.unflatten(1, (self.reader.rows, self.reader.taps)).transpose(2, 3)
        return flat.unflatten(2, (self.reader.channels, self.reader.taps))

    def rows(self, inputs: Tensor) -> Tensor:
        """Inputs [blocks, positions, channels, taps] as [blocks, N, D], one row a sample: each tap where mixed."""
        return inputs.transpose(2, 3).flatten(1, 2) if self.mixed else inputs.flatten(2)

    def columns(self, channels: Tensor) -> Tensor:
        """Columns of channels [..., k] of a block, [..., k · taps]; the channels themselves where mixed."""
        if self.mixed or self.reader.taps == 1:
            return channels
        taps = torch.arange(self.reader.taps, device=channels.device)
        return (channels.unsqueeze(-1) * self.reader.taps + taps).flatten(-2)


def ridged(inner: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """A part of the moments with more on its diagonal: the ridge over each column's own, so that dead ones stay dead.

    And a little of the mean of all, so that it is never singular, as of images that are all alike.
    """
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    least = gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return inner + torch.diag_embed(ridge * diagonal + min(ridge, _FLOOR) * least)


def factored(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor of symmetric matrices [..., D, D] without negative eigenvalues.

    Rounding leaves some below zero where inputs hardly vary about a large mean; these get as much more on the diagonal
    as it takes.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed.any():
        return factor
    more = torch.finfo(matrix.dtype).eps * matrix.abs().amax((-2, -1), keepdim=True)
    while failed.any() and more.isfinite().all():
        factor, failed = torch.linalg.cholesky_ex(matrix + more * torch.eye(matrix.shape[-1]).to(matrix))
        more = 10 * more
    return factor


def taken_up(gram: Tensor, weight: Tensor, kept: Tensor, gone: Tensor, ridge: float) -> Tensor:
    """What the columns that stay take over, W_R G_RP (G_PP + λ diag G_PP)⁻¹, [blocks, R, kept].

    Args:
        gram: Moments, [blocks, D, D].
        weight: [blocks, R, D].
        kept: Columns that stay, [blocks, kept].
        gone: Columns that go, [blocks, gone].
        ridge: λ over the diagonal, see `ridged`.
    """
    rows = gram.gather(1, kept.unsqueeze(2).expand(-1, -1, gram.shape[2]))  # [blocks, kept, D]
    inner = rows.gather(2, kept.unsqueeze(1).expand(-1, kept.shape[1], -1))
    across = rows.gather(2, gone.unsqueeze(1).expand(-1, kept.shape[1], -1))
    factor = factored(ridged(inner, gram, ridge))
    return torch.cholesky_solve(across @ columns_at(weight, gone).mT, factor).mT


def columns_at(weight: Tensor, columns: Tensor) -> Tensor:
    """Some columns [blocks, k] of a weight [blocks, R, D], [blocks, R, k]."""
    return weight.gather(2, columns.unsqueeze(1).expand(-1, weight.shape[1], -1))


def scattered(change: Tensor, kept: Tensor, shape: torch.Size) -> Tensor:
    """Columns [blocks, R, kept] in their places among all, zero elsewhere, [blocks, R, D]."""
    return change.new_zeros(shape).scatter_(2, kept.unsqueeze(1).expand(-1, shape[1], -1), change)


def validated(halves: Tensor, weight: Tensor, kept: Tensor, gone: Tensor) -> tuple[float | None, float, float]:
    """The ridge with which solutions hold best on images that they were not made from, and how optimistic they are.

    A trial: these columns go, what stays is solved on one half of the images, and the error on the other half counts;
    then the other way round. From few images a solution is worse than none, and how few they are depends on how much
    positions and images are alike, which no count of samples tells.

    Args:
        halves: Moments of each half of the images, [2, blocks, D, D].
        weight: What is to be kept, [blocks, R, D]: the weight, in the rows that matter.
        kept: Columns that stay, [blocks, kept].
        gone: Columns that go, [blocks, gone].

    Returns:
        The ridge, None where none is better than leaving the weights; the error on other images over the error on the
        same ones, from twice as many images as a half has; and over the error of the weights as they are.
    """
    if weight.shape[1] > _TRIAL_ROWS:  # sums of rows with random signs: their errors are on average those of the rows
        signs = torch.randint(0, 2, (_TRIAL_ROWS, weight.shape[1]), generator=torch.Generator().manual_seed(0))
        weight = (2.0 * signs - 1).to(weight) @ weight
    lost = -scattered(columns_at(weight, gone), gone, weight.shape)
    as_is = sum(_error(half, lost) for half in halves)
    tried: list[tuple[float, float, float]] = []
    for ridge in _RIDGES:
        own = other = 0.0
        for here, there in ((0, 1), (1, 0)):
            change = lost + scattered(taken_up(halves[here], weight, kept, gone, ridge), kept, weight.shape)
            own, other = own + _error(halves[here], change), other + _error(halves[there], change)
        tried.append((ridge, own, other))
        if other > _RISEN * min(other for _, _, other in tried):
            break
    best = min(other for _, _, other in tried)
    if not best < as_is:
        return None, 1.0, 1.0
    ridge, own, other = next(each for each in tried if each[2] <= best + _WORTH * (as_is - best))
    if other <= _SMALL * as_is:
        own = max(own, other)  # next to nothing is lost, whatever the ratio of what is left
    # The gap goes with the unknowns over the samples: of twice the samples it is about the root.
    return ridge, max(other / max(own, _NOTHING * as_is), 1.0) ** 0.5, other / as_is


def _error(gram: Tensor, change: Tensor) -> float:
    """E‖change · x‖²."""
    return float(((change @ gram) * change).sum())
