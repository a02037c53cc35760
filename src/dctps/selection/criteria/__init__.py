"""Which weights train: criteria that score them on the dense network, or on the converted one.

`docs/selection.md` has each one's equation, options and traps. Options are bound with `functools.partial`:
`criterion=partial(dctps.criteria.force, steps=100)`.
"""

from dctps.selection.criteria.grasp import grasp as grasp
from dctps.selection.criteria.offset import offset_gradient as offset_gradient
from dctps.selection.criteria.offset import offset_snip as offset_snip
from dctps.selection.criteria.registry import Criterion as Criterion
from dctps.selection.criteria.registry import Loss as Loss
from dctps.selection.criteria.registry import list_criteria as list_criteria
from dctps.selection.criteria.registry import register_criterion as register_criterion
from dctps.selection.criteria.scoring import cross_entropy as cross_entropy
from dctps.selection.criteria.scoring import nll_on_logits as nll_on_logits
from dctps.selection.criteria.snip import force as force
from dctps.selection.criteria.snip import iter_snip as iter_snip
from dctps.selection.criteria.snip import magnitude as magnitude
from dctps.selection.criteria.snip import snip as snip
from dctps.selection.criteria.synflow import synflow as synflow
