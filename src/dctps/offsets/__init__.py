"""D, the fixed dense part of a layer, as an operator that is never stored.

To add an offset, subclass `Offset` and decorate the class with `register_offset("name")`;
`dctps.testing.OffsetContract` tests it.
"""

from .base import Offset as Offset
from .dct import DCTOffset as DCTOffset
from .gaussian import GaussianOffset as GaussianOffset
from .hadamard import HadamardOffset as HadamardOffset
from .registry import build_offset as build_offset
from .registry import list_offsets as list_offsets
from .registry import register_offset as register_offset
from .sdct import SDCTOffset as SDCTOffset
from .zero import ZeroOffset as ZeroOffset
