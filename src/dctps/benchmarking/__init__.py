"""Times and memory of layers and networks beside dense PyTorch's, behind `dctps bench`."""

from dctps.benchmarking.parts import Plan as Plan
from dctps.benchmarking.parts import run_bench as run_bench
