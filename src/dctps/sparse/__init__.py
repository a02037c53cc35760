"""S: a support, sorted flat positions in a weight, and the values there."""

from .ops import sddmm as sddmm
from .ops import sddmm_ref as sddmm_ref
from .ops import spmm as spmm
from .ops import spmm_ref as spmm_ref
from .support import budget as budget
from .support import check_support as check_support
from .support import random_support as random_support
