"""D, the fixed dense part of a layer, as an operator that is never stored.

To add an offset, subclass `Offset` and decorate the class with `register_offset("name")`;
`dctps.testing.OffsetContract` tests it.
"""

from dctps.offsets.base import Offset as Offset
from dctps.offsets.dct import DCTOffset as DCTOffset
from dctps.offsets.gaussian import GaussianOffset as GaussianOffset
from dctps.offsets.hadamard import HadamardOffset as HadamardOffset
from dctps.offsets.registry import OffsetChoice as OffsetChoice
from dctps.offsets.registry import build_offset as build_offset
from dctps.offsets.registry import list_offsets as list_offsets
from dctps.offsets.registry import offset_of as offset_of
from dctps.offsets.registry import register_offset as register_offset
from dctps.offsets.sdct import SDCTOffset as SDCTOffset
from dctps.offsets.zero import ZeroOffset as ZeroOffset
