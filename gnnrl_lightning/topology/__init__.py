from gnnrl_lightning.topology.groups import ChannelGroup, Member
from gnnrl_lightning.topology.topology import Topology, trace

__all__ = ["ChannelGroup", "Member", "Topology", "trace"]
