"""Native code behind the layers, in C without torch's or Python's ABI; else torch operations serve."""

from dctps.kernels.boundary import SupportError as SupportError
from dctps.kernels.conv import conv_backward as conv_backward
from dctps.kernels.conv import conv_forward as conv_forward
from dctps.kernels.depthwise import depthwise_backward as depthwise_backward
from dctps.kernels.depthwise import depthwise_forward as depthwise_forward
from dctps.kernels.filters import Filters as Filters
from dctps.kernels.filters import Window as Window
from dctps.kernels.filters import depthwise_filters as depthwise_filters
from dctps.kernels.linear import NativeOffset as NativeOffset
from dctps.kernels.linear import linear_backward as linear_backward
from dctps.kernels.linear import linear_forward as linear_forward
from dctps.kernels.loader import function as function
from dctps.kernels.loader import missing as missing
from dctps.kernels.loader import release_scratch as release_scratch
from dctps.kernels.loader import runnable_variants as runnable_variants
from dctps.kernels.loader import scratch_bytes as scratch_bytes
from dctps.kernels.loader import variant as variant
from dctps.kernels.plans import has_plan as has_plan
from dctps.kernels.weight import conv_weight as conv_weight
from dctps.kernels.weight import conv_weight_backward as conv_weight_backward
