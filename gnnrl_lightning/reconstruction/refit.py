"""New weights in closed form for the channels that stay.

With P the columns that stay, R those that go and G the moments of the input, the error E‖W x − W' x_P‖² of the outputs
is least at W' = W_P + W_R G_RP (G_PP + λ diag G_PP)⁻¹: what goes is written as a combination of what stays, and the
weight takes it up. Where something behind takes the mean, G is about the mean, and the bias (or BatchNorm's running
mean) changes by (W − W') E[x]. One solution serves any error measure on the outputs, since each row has its own. No
widths need a pass over images. He et al. (ICCV 2017) solve the same problem on sampled outputs; GRAIL (arXiv
2602.23795) mixes channels.
"""

import torch
from torch import Tensor

from gnnrl_lightning.reconstruction.moments import Moments, scattered, taken_up
from gnnrl_lightning.reconstruction.statistics import Statistics


@torch.no_grad()
def refit(statistics: Statistics, mask: Tensor) -> dict[str, Tensor]:
    """New weights, biases and running means of all readers that lose channels.

    Args:
        statistics: Of the unpruned network.
        mask: Which slots stay, [slots].

    Returns:
        Full-size tensors by name, from which what goes is still to be cut.
    """
    mask = torch.cat([mask, mask.new_ones(1)])  # the last is for slot −1, all that stays
    changed: dict[str, Tensor] = {}
    for moments in statistics.moments:
        reader = moments.reader
        stays = mask[reader.slots]
        if stays.all():
            continue
        old = statistics.tensors[reader.weight]
        matrix = reader.layout.matrix(old).double()
        kept, gone = (columns_of(moments, each).to(old.device) for each in (stays, ~stays))
        new = moments.flat(matrix).clone()
        if moments.ridge is not None:
            new += scattered(taken_up(moments.gram, new, kept, gone, moments.ridge), kept, new.shape)
        new.scatter_(2, gone.unsqueeze(1).expand(-1, new.shape[1], -1), 0.0)
        new = moments.unflat(new)
        if not new.isfinite().all():
            continue
        changed[reader.weight] = reader.layout.weight(new.to(old.dtype), old)
        shift = torch.einsum("brct,bct->br", matrix - new, moments.mean).flatten()
        for name, sign in ((reader.bias, 1), *((mean, -1) for mean in reader.means)):
            if name is not None:
                before = changed.get(name, statistics.tensors[name])
                changed[name] = (before.double() + sign * shift).to(before.dtype)
    return changed


def columns_of(moments: Moments, chosen: Tensor) -> Tensor:
    """Columns of the chosen channels [blocks, channels], [blocks, k]; every block has equally many."""
    channels = chosen.nonzero()[:, 1].view(len(chosen), -1)
    return moments.columns(channels)
