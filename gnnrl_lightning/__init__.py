"""Topology-aware channel pruning: a trained CNN and a budget in, a really smaller network out."""

from gnnrl_lightning.pruning.apply import apply_plan, load_pruned, save_pruned, uniform_plan
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.rewrite import is_rewritten
from gnnrl_lightning.topology import ChannelGroup, Topology, trace
from gnnrl_lightning.topology.hierarchy import HierarchicalGraph, hierarchical_graph

__version__ = "0.1.0"

__all__ = [
    "ChannelGroup",
    "HierarchicalGraph",
    "PruningPlan",
    "Topology",
    "apply_plan",
    "hierarchical_graph",
    "is_rewritten",
    "load_pruned",
    "save_pruned",
    "trace",
    "uniform_plan",
]
