"""Fast transforms as pure functions on the last dimension, each with a float64 slow twin."""

from dctps.transforms.dct import dct as dct
from dctps.transforms.dct import dct_ref as dct_ref
from dctps.transforms.dct import dct_row_factors as dct_row_factors
from dctps.transforms.dct import dct_rows as dct_rows
from dctps.transforms.dct import idct as idct
from dctps.transforms.dct import idct_ref as idct_ref
from dctps.transforms.hadamard import hadamard as hadamard
from dctps.transforms.hadamard import hadamard_matrix as hadamard_matrix
from dctps.transforms.hadamard import hadamard_ref as hadamard_ref
from dctps.transforms.hadamard import hadamard_rows as hadamard_rows
from dctps.transforms.tables import table_bytes as table_bytes
