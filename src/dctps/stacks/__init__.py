"""Many small networks trained as one on shared batches; each keeps its own run and its own folder."""

from dctps.stacks.chain import NotAChain, chain_of
from dctps.stacks.executors import on_ray, stacked
from dctps.stacks.native import Losses
from dctps.stacks.stack import Stack

__all__ = ["Losses", "NotAChain", "Stack", "chain_of", "on_ray", "stacked"]
