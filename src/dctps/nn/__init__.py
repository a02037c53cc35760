"""Layers with W = alpha * D + S, and what can be done to a whole network of them."""

from .conv import DpSConv2d as DpSConv2d
from .functional import dps_conv2d as dps_conv2d
from .functional import dps_linear as dps_linear
from .functional import dps_weight as dps_weight
from .layer import DpSLayer as DpSLayer
from .linear import DpSLinear as DpSLinear
from .report import Report as Report
from .report import report as report
from .surgery import merge_ as merge_
