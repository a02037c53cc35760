"""How y = alpha * D x + S x + b is computed: a rule picks a path, one autograd function serves them all."""

from dctps.product import compiled as compiled  # defines the operators that `function` calls under a compiler
from dctps.product.function import dps_conv2d as dps_conv2d
from dctps.product.function import dps_linear as dps_linear
from dctps.product.machine import list_machines as list_machines
from dctps.product.machine import use_machine as use_machine
from dctps.product.rule import Backend as Backend
from dctps.product.weight import dps_weight as dps_weight
