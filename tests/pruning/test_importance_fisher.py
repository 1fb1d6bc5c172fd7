"""What the loss changes by: Taylor and Fisher scores against the loss itself."""

import torch
from test_importance_gates import LABELS, gated_scores, losses, network
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.importance.fisher import Fisher, activations
from gnnrl_lightning.importance.taylor import Taylor
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.topology import Topology, trace


def task_of(topology: Topology) -> Task:
    return Task(topology, topology.macs, topology.macs(), topology.full_widths(), lambda: [])


class Residual(nn.Module):
    """A trunk that two layers write and two read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.a, self.b = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))


def test_fisher_scores_are_what_the_loss_rises_by() -> None:
    """Where the theory holds, by its two conditions: the loss is at its minimum, and what goes is small.

    Labels are drawn from what the network says, so that no other network fits them better: there the gradient of the
    loss is 0, and its second derivative the mean square of the images' gradients (information matrix equality). What
    is left is the noise of the draw, some 3 %, and for a whole channel what is above second order.
    """
    torch.manual_seed(0)
    model = Residual().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    generator = torch.Generator().manual_seed(0)
    held = HeldImages(torch.randint(256, (2048, 3, 8, 8), generator=generator).byte(), IMAGENET)
    x = held[:]
    with torch.no_grad():
        says = gated_scores(model, topology, torch.ones(len(x), 11).double(), x).softmax(1)
    labels = torch.multinomial(says, 1, generator=generator).flatten()
    scores = torch.cat(Fisher(images=None, batch_size=1024)(model, task_of(topology), held, labels).scores)
    scores *= activations(topology)

    def loss(gates: Tensor) -> float:
        """Expected over the labels that the network says."""
        with torch.no_grad():
            logarithms = gated_scores(model, topology, gates.expand(len(x), -1), x).log_softmax(1)
        return -float((says * logarithms).sum(1).mean())

    full, one = loss(torch.ones(11).double()), torch.eye(11).double()
    for size, tolerance in ((0.02, 0.1), (1.0, 0.25)):
        rises = torch.tensor([loss(1 - size * gate) - full for gate in one]) / size**2
        torch.testing.assert_close(scores, rises, rtol=tolerance, atol=0)
    assert scores.max() > 5 * scores.min()


def test_a_channel_takes_memory_wherever_it_is_written() -> None:
    """4 · 4 positions each: the trunk's in the stem and in b, the stem's of a depth-wise network in two layers."""
    topology = trace(Residual(), torch.zeros(1, 3, 9, 9))
    assert activations(topology).tolist() == [2 * 16] * 6 + [16] * 5
    _, topology = network("depth-wise")
    assert activations(topology).tolist() == [2 * 16] * 6 + [1] * 5
    model, topology = network("depth-wise")
    batch = trace(model, torch.zeros(3, 3, 8, 8))
    assert activations(batch).equal(activations(topology))


def test_taylor_scores_are_sizes_of_gradients_relative_to_their_group() -> None:
    model, topology = network("depth-wise")
    held = HeldImages(torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), IMAGENET)
    gates = torch.ones(3, 11).double().requires_grad_()
    (gradients,) = torch.autograd.grad(losses(model, topology, gates, held[:]).sum(), gates)
    for scores, sizes in zip(
        Taylor(images=3, batch_size=2)(model, task_of(topology), held, LABELS).scores,
        gradients.abs().mean(0).split([6, 5]),
        strict=True,
    ):
        torch.testing.assert_close(scores.double(), sizes / sizes.norm(), rtol=1e-4, atol=1e-6)
