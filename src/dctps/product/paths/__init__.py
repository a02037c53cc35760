"""The paths, one in each file: the table of docs/backends.md."""

from dctps.product.path import Path
from dctps.product.paths.dense import DENSE
from dctps.product.paths.depthwise import DEPTHWISE
from dctps.product.paths.factors import FACTORS
from dctps.product.paths.made import KEPT, MADE
from dctps.product.paths.rows import ROWS_PATH
from dctps.product.paths.strips import STRIPS
from dctps.product.paths.taps import TAPS
from dctps.product.paths.tiles import TILES
from dctps.product.paths.transform import TRANSFORM

# Of equal estimates the first is taken.
PATHS: tuple[Path, ...] = (DEPTHWISE, TAPS, KEPT, MADE, FACTORS, DENSE, TILES, TRANSFORM, ROWS_PATH, STRIPS)
