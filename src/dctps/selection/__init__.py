"""Who may move: how many weights of each layer (allocation), and which (criterion)."""

from .allocation import Allocation as Allocation
from .allocation import allocate as allocate
from .allocation import list_allocations as list_allocations
from .allocation import register_allocation as register_allocation
from .criteria import Criterion as Criterion
from .criteria import list_criteria as list_criteria
from .criteria import register_criterion as register_criterion
from .sparsify import sparsify_ as sparsify_
