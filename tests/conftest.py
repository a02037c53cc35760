import os
import random
import signal

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import settings

# Two test workers on two cores: threads of one would only wait for the other's.
torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and processes inherit that; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, max_examples=25, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=400, print_blob=True)
settings.load_profile(os.environ.get("DCTPS_TEST_PROFILE", "default"))


class TorchGenerator:
    """torch's global generator, which hypothesis sets before each example as it sets Python's."""

    def seed(self, seed):
        torch.manual_seed(seed)

    def getstate(self):
        return torch.get_rng_state()

    def setstate(self, state):
        torch.set_rng_state(state)


TORCH_GENERATOR = TorchGenerator()  # hypothesis refers to it weakly
hypothesis.register_random(TORCH_GENERATOR)


def seed_all():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collectstart(collector):
    """What a module draws as it is imported is the same in each run."""
    if isinstance(collector, pytest.Module):
        seed_all()


@pytest.fixture(autouse=True)
def the_same_draws_in_each_run():
    seed_all()
