from gnnrl_lightning.topology.groups import ChannelGroup, Member
from gnnrl_lightning.topology.topology import Topology
from gnnrl_lightning.topology.tracing import trace

__all__ = ["ChannelGroup", "Member", "Topology", "trace"]
