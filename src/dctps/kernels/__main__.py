"""`python -m dctps.kernels` compiles the native kernels in place, and names the variant that is used here."""

import sys
from functools import partial

from dctps.kernels.build import CompileError, compile_library
from dctps.kernels.loader import variant

try:
    print(f"{compile_library(on_note=partial(print, file=sys.stderr, flush=True))}: {variant()}")
except (CompileError, OSError) as error:
    sys.exit(str(error))
