"""Who may move when: methods that change the supports while a network trains."""

from dctps.dynamic.averaging import AveragedModel as AveragedModel
from dctps.dynamic.base import Dynamics as Dynamics
from dctps.dynamic.base import find_dynamics as find_dynamics
from dctps.dynamic.base import list_dynamics as list_dynamics
from dctps.dynamic.base import register_dynamics as register_dynamics
from dctps.dynamic.random_growth import DSR as DSR
from dctps.dynamic.random_growth import SET as SET
from dctps.dynamic.rigl import Growth as Growth
from dctps.dynamic.rigl import RigL as RigL
from dctps.dynamic.rigl import largest_gradients as largest_gradients
from dctps.dynamic.support import change_support_ as change_support_
from dctps.dynamic.support import take_sizes_ as take_sizes_
from dctps.dynamic.union import average_over_union as average_over_union
