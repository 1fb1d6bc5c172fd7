"""Topology-aware channel pruning: a trained CNN and a budget in, a really smaller network out."""

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.library.found import Found
from gnnrl_lightning.library.search import search
from gnnrl_lightning.pruning.apply import apply_plan, plan, uniform_plan
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.rewrite import is_rewritten
from gnnrl_lightning.pruning.saved import load_pruned, save_pruned
from gnnrl_lightning.pruning.verify import provable
from gnnrl_lightning.settings import SearchSettings
from gnnrl_lightning.topology import ChannelGroup, Topology, trace
from gnnrl_lightning.topology.hierarchy import HierarchicalGraph, hierarchical_graph

__version__ = "0.1.0"

__all__ = [
    "ChannelGroup",
    "Found",
    "HierarchicalGraph",
    "PruningPlan",
    "SearchSettings",
    "Topology",
    "UserError",
    "apply_plan",
    "hierarchical_graph",
    "is_rewritten",
    "load_pruned",
    "plan",
    "provable",
    "save_pruned",
    "search",
    "trace",
    "uniform_plan",
]
