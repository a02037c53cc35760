"""Who may move: how many weights of each layer (allocation), and which (criterion)."""

from dctps.selection.allocation import Allocation as Allocation
from dctps.selection.allocation import allocate as allocate
from dctps.selection.allocation import list_allocations as list_allocations
from dctps.selection.allocation import register_allocation as register_allocation
from dctps.selection.criteria import Criterion as Criterion
from dctps.selection.criteria import list_criteria as list_criteria
from dctps.selection.criteria import register_criterion as register_criterion
from dctps.selection.shuffle import shuffle_ as shuffle_
from dctps.selection.sparsify import count_prunable as count_prunable
from dctps.selection.sparsify import sparsify_ as sparsify_
