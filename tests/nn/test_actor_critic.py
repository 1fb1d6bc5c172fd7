"""The policy's distribution against torch's own."""

import torch
from torch.distributions import MultivariateNormal, SigmoidTransform, TransformedDistribution

from gnnrl_lightning.nn.actor_critic import SquashedNormal


def squashed(groups: int = 4) -> tuple[SquashedNormal, TransformedDistribution]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(6, groups, generator=generator)
    root = torch.randn(groups, groups, generator=generator)
    scale = torch.linalg.cholesky(0.1 * (root @ root.T) + 0.2 * torch.eye(groups))
    return SquashedNormal(mean, scale), TransformedDistribution(
        MultivariateNormal(mean, scale_tril=scale), [SigmoidTransform()]
    )


def test_log_probability_is_that_of_the_ratios() -> None:
    ours, theirs = squashed()
    ratios = theirs.sample()
    torch.testing.assert_close(ours.log_prob(ratios), theirs.log_prob(ratios))


def test_samples_follow_the_distribution_and_the_generator() -> None:
    ours, _ = squashed()
    ratios = ours.sample(torch.Generator().manual_seed(1))
    assert torch.equal(ratios, ours.sample(torch.Generator().manual_seed(1)))
    assert not torch.equal(ratios, ours.sample(torch.Generator().manual_seed(2)))
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([torch.logit(ours.sample(generator)) for _ in range(4000)])  # [4000, 6, 4]
    torch.testing.assert_close(drawn.mean(0), ours.base.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(drawn[:, 0].T), ours.base.covariance_matrix[0], atol=0.1, rtol=0.1)
    assert ((drawn.sigmoid() > 0) & (drawn.sigmoid() < 1)).all()


def test_the_edges_of_the_interval_are_finite() -> None:
    ours, _ = squashed()
    assert ours.log_prob(torch.zeros(6, 4)).isfinite().all()
    assert ours.log_prob(torch.ones(6, 4)).isfinite().all()
