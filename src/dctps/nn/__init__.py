"""Layers with W = alpha * D + S, and what can be done to a whole network of them."""

from dctps.nn import huggingface as huggingface
from dctps.nn.attention import DpSMultiheadAttention as DpSMultiheadAttention
from dctps.nn.conv import DpSConv2d as DpSConv2d
from dctps.nn.conv1d import DpSConv1d as DpSConv1d
from dctps.nn.conversion import register_conversion as register_conversion
from dctps.nn.explanation import explain as explain
from dctps.nn.layer import DpSLayer as DpSLayer
from dctps.nn.linear import DpSLinear as DpSLinear
from dctps.nn.norms import plain_norms_ as plain_norms_
from dctps.nn.norms import remove_biases_ as remove_biases_
from dctps.nn.norms import share_norms_ as share_norms_
from dctps.nn.surgery import merge_ as merge_
from dctps.nn.tuning import set_backends_ as set_backends_
from dctps.nn.tuning import tune_ as tune_
from dctps.product.function import dps_conv2d as dps_conv2d
from dctps.product.function import dps_linear as dps_linear
from dctps.product.weight import dps_weight as dps_weight
