"""A module whose state names the linear map that its numbers belong to."""

from dctps.identity.identified import Identified as Identified
from dctps.identity.identified import LinearMap as LinearMap
