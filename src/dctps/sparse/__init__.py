"""S: a support, sorted flat positions in a weight, and the values there."""

from dctps.sparse.ops import sddmm as sddmm
from dctps.sparse.ops import sddmm_ref as sddmm_ref
from dctps.sparse.ops import spmm as spmm
from dctps.sparse.ops import spmm_ref as spmm_ref
from dctps.sparse.support import budget as budget
from dctps.sparse.support import check_support as check_support
from dctps.sparse.support import random_support as random_support
