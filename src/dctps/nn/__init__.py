"""The layers with W = alpha * D + S."""

from importlib import import_module
from typing import Any

from dctps.nn.attention import DpSMultiheadAttention as DpSMultiheadAttention
from dctps.nn.conv import DpSConv2d as DpSConv2d
from dctps.nn.conv1d import DpSConv1d as DpSConv1d
from dctps.nn.layer import DpSLayer as DpSLayer
from dctps.nn.linear import DpSLinear as DpSLinear
from dctps.product.function import dps_conv2d as dps_conv2d
from dctps.product.function import dps_linear as dps_linear
from dctps.product.weight import dps_weight as dps_weight

_NETWORKS = {
    *("explain", "merge_", "plain_norms_", "register_conversion", "remove_biases_"),
    *("set_backends_", "share_norms_", "tune_"),
}


def __getattr__(name: str) -> Any:
    if name in _NETWORKS:  # which were here before they had a folder
        return getattr(import_module("dctps.networks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
