"""Times and memory of layers and networks beside dense PyTorch's, behind `dctps bench`."""

from dctps.benchmarking.parts import run_bench as run_bench
from dctps.benchmarking.plan import Plan as Plan
