"""Importance of channels together: a genetic algorithm looks for the set that the layers behind miss least."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gnnrl_lightning.core.checks import require_number, require_whole
from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.batches import batches, require_images
from gnnrl_lightning.importance.gates import read_slots
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.program import Layer, run, tensors_of

_ELITE = 2  # sets that live on as they are
_RIVALS = 4  # sets of which the best becomes a parent


class Genetic:
    """The channels without which the outputs of the layers behind differ least, found by a genetic algorithm.

    Hu et al., "A novel channel pruning method for deep neural network compression" (arXiv 1805.11394, 2018), take the
    fitness of a set in two approximations. Our reading: first, the error of the outputs of all layers that read the
    group, relative to these outputs, stands for the loss. Second, that error is a quadratic form of what is removed,
    Q[c, d] = Σ ⟨Y_c, Y_d⟩ / ‖Y‖², with Y_c the part of a layer's output (without its bias) that comes from channel c.
    Q is taken once, on sampled outputs, and a chromosome then costs no forward pass. A sample is a sum of one image's
    outputs with random signs: on average the products of such sums are those of the outputs.

    The score of a channel is Q[c, c], the error without it alone. Together channels can be worth less, where they
    cancel each other, or more, where they say the same.

    Args:
        images: Training images to look at, at least 1; None: all.
        batch_size: Images a pass.
        samples: Sampled outputs of each layer and image, at least 1.
        population: Sets of channels at a time, above 2.
        generations: How often they have children, at least 0.
        crossover: Probability that a child has two parents, in (0, 1).
        mutation: Channels of a child that are drawn anew, on average, above 0.
        seed: Equal seeds give equal channels.

    Raises:
        UserError: If a value is out of range.
    """

    one_input = True

    def __init__(
        self,
        images: int | None,
        batch_size: int,
        samples: int,
        population: int,
        generations: int,
        crossover: float,
        mutation: float,
        seed: int,
    ):
        require_images(images, batch_size)
        require_whole("importance.samples", samples, 1)
        require_whole("importance.population", population, _ELITE + 1)
        require_whole("importance.generations", generations, 0)
        require_number("importance.crossover", crossover, above=0, below=1)
        require_number("importance.mutation", mutation, above=0)
        require_whole("importance.seed", seed, 0)
        self.images = images
        self.batch_size = batch_size
        self.samples = samples
        self.population = population
        self.generations = generations
        self.crossover = crossover
        self.mutation = mutation
        self.seed = seed

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by the error without a channel; which channels stay together is looked for when it is asked."""
        forms = agreed(self._forms(model, task, images, labels))

        @cache
        def choose(group: int, width: int) -> tuple[int, ...]:
            generator = torch.Generator().manual_seed(hash((self.seed, group, width)))
            return self._fittest(forms[group], width, generator)

        return Ranking([form.diagonal().clone() for form in forms], lambda group, width: list(choose(group, width)))

    def _forms(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> list[Tensor]:
        """Q of each group, [width, width]."""
        topology, device = task.topology, images.device
        distinct = {name: slots.unique(return_inverse=True) for name, slots in read_slots(topology).items()}
        generator = torch.Generator(device).manual_seed(self.seed)
        tensors = {name: value.detach() for name, value in tensors_of(model).items()}

        def sampled(image: Tensor) -> dict[str, Tensor]:
            """What comes from each distinct slot in samples of every reader's outputs, [samples, slots]."""
            parts: dict[str, Tensor] = {}

            def read(node: fx.Node, activation: Tensor, layer: Layer) -> Any:
                slots, place = (each.to(device) for each in distinct[node.name])
                # The part of a channel in a sum of outputs is the sum's gradient with respect to the channel's gate.
                opened = torch.ones(len(slots), device=device)
                outputs, gradient, *_ = torch.func.vjp(lambda gates: layer(activation * gates[place]), opened)
                signs = torch.randint(0, 2, (self.samples, *outputs.shape), device=device, generator=generator)
                parts[node.name] = torch.stack([gradient(each)[0] for each in 2.0 * signs - 1])
                return outputs

            run(tensors, topology, image.unsqueeze(0), read)
            return parts

        products: dict[str, Tensor] = {}
        for batch, _ in batches(images, labels, self.batch_size, "genetic"):
            with sdpa_kernel(SDPBackend.MATH):  # the only one that vmap knows
                found = torch.func.vmap(sampled, randomness="different")(batch)
            for name, parts in found.items():
                parts = parts.flatten(0, 1)
                products[name] = products.get(name, 0) + parts.T @ parts
        widths = topology.full_widths()
        first, forms = widths.cumsum(0) - widths, [torch.zeros(width, width) for width in widths.tolist()]
        for name, product in products.items():
            slots = distinct[name][0]
            relative = (product / product.sum().clamp(min=torch.finfo(product.dtype).tiny)).cpu()
            for group in topology.group_of_slot[slots[slots >= 0]].unique().tolist():
                mine = (slots >= 0) & (topology.group_of_slot[slots] == group)
                channels = slots[mine] - first[group]
                forms[group][channels.unsqueeze(1), channels] += relative[mine][:, mine]
        return forms

    def _fittest(self, form: Tensor, width: int, generator: torch.Generator) -> tuple[int, ...]:
        """The best set of `width` channels that was found, ascending."""
        count = len(form)
        if width == count:
            return tuple(range(count))

        def best_of(keys: Tensor) -> Tensor:
            return torch.zeros_like(keys).scatter_(1, keys.topk(width).indices, 1.0)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        def errors(kept: Tensor) -> Tensor:
            return ((1 - kept) @ form * (1 - kept)).sum(1)

        keys = uniform(self.population, count)
        keys[0] = form.diagonal()
        kept = best_of(keys)
        children = self.population - _ELITE
        for _ in range(self.generations):
            error = errors(kept)
            elite = kept[error.topk(_ELITE, largest=False).indices]
            rivals = torch.randint(self.population, (2, children, _RIVALS), generator=generator)
            mother, father = kept[rivals.gather(2, error[rivals].argmin(2, keepdim=True)).squeeze(2)]
            # What both keep stays, and what only one keeps fills up the number by lot; so do those drawn anew.
            crossed = uniform(children, 1) < self.crossover
            keys = mother + torch.where(crossed, father, mother) + uniform(children, count)
            anew = uniform(children, count) < self.mutation / count
            kept = torch.cat([elite, best_of(torch.where(anew, 3 * uniform(children, count), keys))])
        return tuple(kept[errors(kept).argmin()].nonzero().flatten().tolist())
