"""A search from Python: `gl.search`, without files."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_fraction
from gnnrl_lightning.core.inputs import Inputs, changed
from gnnrl_lightning.core.samples import HeldInputs, Samples
from gnnrl_lightning.evaluation.final import deliver
from gnnrl_lightning.evaluation.reward import Score
from gnnrl_lightning.library.components import by_name, component, default
from gnnrl_lightning.library.feeding import held
from gnnrl_lightning.library.found import Found
from gnnrl_lightning.problem.problem import Problem, make_prunable
from gnnrl_lightning.pruning.apply import make_plan
from gnnrl_lightning.settings import FinishConfig, RefitConfig, SearchSettings

log = logging.getLogger(__name__)

Split = tuple[Samples, Tensor | None]

_REWARD_IMAGES = 5000
_EVAL_BATCH = 128


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

    Raises:
        UserError: If an argument is at fault.
    """
    _check_model(model)
    require_fraction("budget", budget)
    # Imported here: Lightning takes seconds.
    from lightning.pytorch.utilities.seed import isolate_rng

    given = {"agent": agent, "importance": importance, "recovery": recovery, "cost": cost}
    chosen = {group: default(group) if choice is None else choice for group, choice in given.items()}
    # The agent draws, a loader may, and so does the check of a network with dropout; the finish needs gradients.
    with isolate_rng(), torch.inference_mode(False), torch.enable_grad():
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
    from gnnrl_lightning.searching.explore import explore, quiet, seed_all
    from gnnrl_lightning.searching.preparation import Preparation, wanted_images

    original = _copied(_unwrapped(model)).eval()
    device = next(original.parameters()).device
    parts, alongside = dict(chosen), dict[str, Any]()
    for group, choice in chosen.items():
        if by_name(choice):
            parts[group], more = component(group, choice, settings.get("seed", 0))
            alongside |= more
    asked = _settings(settings, alongside)
    for group in ("importance", "recovery"):
        parts[group] = parts[group]() if by_name(chosen[group]) else parts[group]
        if not hasattr(parts[group], "images") or isinstance(parts[group], type):
            raise UserError(
                f"{group} is {parts[group]!r}; it must be a name of conf/{group}, a mapping with one, or an object."
            )
    wanted = wanted_images(asked, parts["importance"], parts["recovery"]).values()
    most = None if None in wanted else max(1, *(number or 0 for number in wanted))
    training, reward = _splits(original, data, reward_data, most)
    _check_targets(training, reward[1], score, asked, {name: parts[name] for name in ("importance", "recovery")})
    prunable = make_prunable(original, training[0][:1], asked)
    described = {"topology": prunable.unpruned, "network": prunable.deployed, "device": device}
    cost = parts["cost"](**described) if by_name(chosen["cost"]) else parts["cost"](prunable.unpruned)
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
    with quiet():
        agent = parts["agent"](task=task) if by_name(chosen["agent"]) else parts["agent"](task)
    explored = explore(prepared, agent, prepared.begin(device, _EVAL_BATCH, score=score), device)
    kept = explored.evaluator.kept(explored.widths)
    shown = partial(_drawn, training[0], asked.finish.batch_size, asked.seed, device)
    delivered = deliver(explored.evaluator, kept, asked, shown)
    about = {"budget": budget, "cost": getattr(cost, "name", type(cost).__name__), "seed": asked.seed}
    about["agent"] = _name(chosen["agent"], agent)
    return Found(problem, replace(make_plan(prunable.topology, kept), about=about), explored, delivered)


def _name(choice: Any, agent: Any) -> str:
    if by_name(choice):
        return choice if isinstance(choice, str) else str(choice["name"])
    return type(agent).__name__


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        hint = "load_state_dict it into the network first" if isinstance(model, dict) else "the network comes first"
        raise UserError(f"model is a {type(model).__name__}; it must be the trained network, an nn.Module: {hint}.")
    if next(model.parameters(), None) is None:
        raise UserError(f"{type(model).__name__} has no parameters, so there is nothing to prune.")


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever an attribute of the user's network raises
        raise UserError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]}); if it keeps what an earlier call "
            f"computed, set that to None first."
        ) from error


def _settings(given: dict[str, Any], alongside: dict[str, Any]) -> SearchSettings:
    names = [each.name for each in fields(SearchSettings)]
    if unknown := sorted(given.keys() - set(names)):
        raise UserError(f"search has no setting {', '.join(unknown)}; it has {', '.join(names)}.")
    values = alongside | given
    for name, kind in (("refit", RefitConfig), ("finish", FinishConfig)):
        if name not in values:
            continue
        part = values[name]
        if isinstance(part, bool):
            values[name] = kind(enabled=part)
        elif part is None:
            raise UserError(f"{name}=None is not possible; give a mapping of settings, or {name}=False for none.")
        elif isinstance(part, dict):
            if unknown := sorted(part.keys() - {each.name for each in fields(kind)}):
                raise UserError(f"{name} has no setting {', '.join(unknown)}.")
            values[name] = kind(**part)
    settings = SearchSettings(**values)
    try:
        settings.check()
    except TypeError as error:
        raise UserError(f"a setting is of the wrong type: {error}.") from error
    return settings


def _splits(model: nn.Module, data: Any, reward_data: Any, wanted: int | None) -> tuple[Split, Split]:
    """Training and reward data, which share nothing."""
    if reward_data is not None:
        return held(model, data, wanted), held(model, reward_data, None, "reward_data")
    inputs, targets = held(model, data, None if wanted is None else wanted + _REWARD_IMAGES)
    if len(inputs) < 2:
        raise UserError("data has one sample; give more, of which half become rewards, or reward_data=….")
    rewards = min(_REWARD_IMAGES, len(inputs) // 2)
    log.info("%d samples of data are for rewards, %d for all else", rewards, len(inputs) - rewards)
    parts = [slice(rewards, None), slice(rewards)]
    shared = inputs.shared if isinstance(inputs, HeldInputs) else None
    first, second = ((HeldInputs(inputs[part], shared), None if targets is None else targets[part]) for part in parts)
    return first, second


def _with_targets(split: Split) -> tuple[Samples, Tensor]:
    """Where there are no targets nothing asks for them."""
    samples, targets = split
    return samples, torch.zeros(len(samples), dtype=torch.long) if targets is None else targets


def _check_targets(
    training: Split, reward: Tensor | None, score: Score | None, asked: SearchSettings, parts: dict[str, Any]
) -> None:
    if score is not None and not callable(score):
        raise UserError(f"score is a {type(score).__name__}; it must be a function of a network that gives a number.")
    if reward is None and score is None and asked.reward == "top1":
        raise UserError('there are no targets to take top-1 from; give reward="kl", or score=<function of a network>.')
    samples, targets = training
    for name, part in parts.items():
        if getattr(part, "needs_labels", False):
            if targets is None:
                raise UserError(f"{name}={type(part).__name__} needs targets; give data with them, or another {name}.")
            if targets.dim() != 1 or targets.is_floating_point() or not isinstance(samples[:1], Tensor):
                raise UserError(
                    f"{name}={type(part).__name__} trains on classes [N] of one input tensor; give another {name}."
                )


def _drawn(samples: Samples, batch_size: int, seed: int, device: torch.device) -> Iterator[Inputs]:
    """Batches of training inputs without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(samples), (batch_size,), generator=generator)
        yield changed(samples[rows], lambda x: x.to(device))
