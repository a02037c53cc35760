"""Fast transforms as pure functions on the last dimension, each with a float64 slow twin."""

from .dct import dct as dct
from .dct import dct_ref as dct_ref
from .dct import dct_rows as dct_rows
from .dct import idct as idct
from .dct import idct_ref as idct_ref
from .hadamard import hadamard as hadamard
from .hadamard import hadamard_ref as hadamard_ref
from .hadamard import hadamard_rows as hadamard_rows
from .tables import table_bytes as table_bytes
