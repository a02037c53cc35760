import os
import signal

import torch
from hypothesis import settings

# Two test workers on two cores: threads of one would only wait for the other's.
torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and processes inherit that; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, max_examples=25, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("DCTPS_TEST_PROFILE", "default"))
