"""Native code behind the layers, in C without torch's or Python's ABI; else torch operations serve."""

from dctps.kernels.linear import NativeOffset as NativeOffset
from dctps.kernels.linear import linear_backward as linear_backward
from dctps.kernels.linear import linear_forward as linear_forward
from dctps.kernels.loader import function as function
from dctps.kernels.loader import release_scratch as release_scratch
from dctps.kernels.loader import runnable_variants as runnable_variants
from dctps.kernels.loader import scratch_bytes as scratch_bytes
from dctps.kernels.loader import variant as variant
from dctps.kernels.plans import has_plan as has_plan
