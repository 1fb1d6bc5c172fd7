"""A search from Python: `gl.search`, without files."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_fraction
from gnnrl_lightning.core.inputs import Inputs, changed
from gnnrl_lightning.core.networks import check_model, unwrapped
from gnnrl_lightning.core.samples import HeldInputs, Samples
from gnnrl_lightning.evaluation.final import deliver
from gnnrl_lightning.evaluation.protocol import SCORE, Protocol
from gnnrl_lightning.evaluation.reward import Score
from gnnrl_lightning.library.checks import (
    Split,
    check_agent,
    check_parts,
    check_targets,
    copy_of,
    own_cost,
    settings_of,
)
from gnnrl_lightning.library.components import by_name, component, default
from gnnrl_lightning.library.feeding import held
from gnnrl_lightning.library.found import Found
from gnnrl_lightning.library.notebook import visible_bars
from gnnrl_lightning.problem.problem import Problem, make_prunable
from gnnrl_lightning.pruning.apply import make_plan
from gnnrl_lightning.settings import SearchSettings

log = logging.getLogger(__name__)

_REWARD_IMAGES = 5000
_EVAL_BATCH = 128
_SHOWN = 32
"""Samples on which networks are compared and timed where rewards have data of their own."""


def search(
    model: nn.Module,
    data: Any,
    budget: float,
    *,
    reward_data: Any = None,
    score: Score | None = None,
    agent: Any = None,
    cost: Any = None,
    importance: Any = None,
    recovery: Any = None,
    **settings: Any,
) -> Found:
    """Finds a smaller network.

    The same search as `search.py`, with the same defaults (`gl.SearchSettings` lists them); the network is neither
    trained before nor fine-tuned after it. It runs where the model is.

    Args:
        model: The trained network, of any task; unchanged.
        data: Training data: a DataLoader of (inputs, targets) or of inputs alone, or all in one tuple of tensors.
        budget: Fraction of the cost that may stay, in (0, 1].
        reward_data: What rewards are taken on, as `data`; None: up to half of what is read of that, which is then not
            used for anything else.
        score: What a network in eval mode is worth, higher is better: mIoU, mAP, PSNR …; None: its top-1 accuracy, or
            with `reward="kl"` how near it is to the unpruned one, which needs no targets.
        agent: What proposes widths; this and the next three are those of the command (conf/search.yaml) where they are
            None: a name, a mapping with its `name` and settings, or a function of a `Task`.
        cost: What the budget counts: flops, params, latency, memory, or a function of the `Topology`, that gives
            a function of widths [..., G]; its values are integers in millionths of its `unit`.
        importance: Which channels of a group go first: a name, a mapping, or an `Importance`.
        recovery: What a pruned network may do before its reward is taken: a name, a mapping, or a `Recovery`.
        settings: Those of `SearchSettings`; `refit` and `finish` as mappings, or False for none.

    Returns:
        The smaller network and how it was found.

    Raises:
        UserError: If an argument is at fault.
    """
    check_model(model)
    require_fraction("budget", budget)
    # Imported here: Lightning takes seconds.
    from lightning.pytorch.utilities.seed import isolate_rng

    from gnnrl_lightning.searching.explore import quiet

    given = {"agent": agent, "importance": importance, "recovery": recovery, "cost": cost}
    chosen = {group: default(group) if choice is None else choice for group, choice in given.items()}
    # The agent draws, a loader may, and so does the check of a network with dropout; the finish needs gradients.
    with quiet(), isolate_rng(), torch.inference_mode(False), torch.enable_grad(), visible_bars():
        return _search(model, data, budget, reward_data, score, chosen, settings)


def _search(
    model: nn.Module,
    data: Any,
    budget: float,
    reward_data: Any,
    score: Score | None,
    chosen: dict[str, Any],
    settings: dict[str, Any],
) -> Found:
    """As `search`, with chosen parts by what they are."""
    from gnnrl_lightning.searching.explore import explore, fit_here, seed_all
    from gnnrl_lightning.searching.precision import single_precision
    from gnnrl_lightning.searching.preparation import Preparation, wanted_images

    original = copy_of(unwrapped(model)).eval()
    device = next(original.parameters()).device
    parts, alongside = dict(chosen), dict[str, Any]()
    for group, choice in chosen.items():
        if by_name(choice):
            parts[group], more = component(group, choice, int(settings.get("seed", SearchSettings.seed)))
            alongside |= more
    asked = settings_of(settings, alongside)
    for group in ("importance", "recovery"):
        parts[group] = parts[group]() if by_name(chosen[group]) else parts[group]
    check_parts(parts)
    wanted = wanted_images(asked, parts["importance"], parts["recovery"]).values()
    most = None if None in wanted else max(1, *(number or 0 for number in wanted))
    training, reward = _splits(original, data, reward_data, score, most, asked.reward_images)
    check_targets(training, reward[1], score, asked, {name: parts[name] for name in ("importance", "recovery")})
    prunable = make_prunable(original, training[0][:1], asked)
    described = {"topology": prunable.unpruned, "network": prunable.deployed, "device": device}
    cost = parts["cost"](**described) if by_name(chosen["cost"]) else own_cost(parts["cost"], prunable.unpruned)
    problem = Problem(prunable, cost, budget)

    prepared = Preparation(
        problem,
        problem.environment(asked.max_steps),
        asked,
        parts["importance"],
        parts["recovery"],
        _with_targets(training),
        _with_targets(reward),
        asked.episodes,
    )
    seed_all(asked.seed)
    task = prepared.task
    with single_precision():
        agent = parts["agent"](task=task) if by_name(chosen["agent"]) else parts["agent"](task)
    check_agent(agent)
    evaluator = prepared.make_evaluator(device, _EVAL_BATCH, score=score)
    fit = partial(fit_here, device=device, protocol=Protocol(SCORE if score else asked.reward))
    explored = explore(prepared, agent, evaluator, fit)
    kept = explored.evaluator.kept(explored.widths)
    shown = partial(_drawn, training[0], asked.finish.batch_size, asked.seed, device)
    delivered = deliver(explored.evaluator, kept, asked, shown)
    about = {"budget": budget, "cost": getattr(cost, "name", type(cost).__name__), "seed": asked.seed}
    about["agent"] = _name(chosen["agent"], agent)
    found = Found(problem, replace(make_plan(prunable.topology, kept), about=about), explored, delivered)
    _ = found.rewards  # now: the caller may train the network further
    return found


def _name(choice: Any, agent: Any) -> str:
    if by_name(choice):
        return choice if isinstance(choice, str) else str(choice["name"])
    return type(agent).__name__


def _splits(
    model: nn.Module, data: Any, reward_data: Any, score: Score | None, wanted: int | None, rewarded: int | None
) -> tuple[Split, Split]:
    """Training and reward data, which share nothing; of a score, which has its own, a few samples to compare with."""
    if score is not None:
        training = held(model, data, wanted)
        return training, (training[0].first(_SHOWN), None)
    if reward_data is not None and reward_data is data:
        raise UserError("reward_data is data itself; leave it out, and a part of data is put aside for rewards.")
    if reward_data is not None:
        most = None if rewarded is None else max(rewarded, _REWARD_IMAGES)
        return held(model, data, wanted), held(model, reward_data, most, "reward_data")
    inputs, targets = held(model, data, None if wanted is None else wanted + _REWARD_IMAGES)
    if len(inputs) < 2:
        raise UserError("data has one sample; give more, of which half become rewards, or reward_data=….")
    rewards = min(_REWARD_IMAGES, len(inputs) // 2)
    log.info("%d samples of data are for rewards, %d for all else", rewards, len(inputs) - rewards)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))  # they may come class by class
    parts = [order[rewards:], order[:rewards]]
    shared = inputs.shared if isinstance(inputs, HeldInputs) else None
    first, second = ((HeldInputs(inputs[part], shared), None if targets is None else targets[part]) for part in parts)
    return first, second


def _with_targets(split: Split) -> tuple[Samples, Tensor]:
    """Where there are no targets nothing asks for them."""
    samples, targets = split
    return samples, torch.zeros(len(samples), dtype=torch.long) if targets is None else targets


def _drawn(samples: Samples, batch_size: int, seed: int, device: torch.device) -> Iterator[Inputs]:
    """Batches of training inputs without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(samples), (batch_size,), generator=generator)
        yield changed(samples[rows], lambda x: x.to(device))
