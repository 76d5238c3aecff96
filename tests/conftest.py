"""Shared set-up. The guard must run before the first import of transformers."""

import os
import random
import sys

try:
    import torchvision  # noqa: F401
except Exception:
    # A torchvision that does not match its torch breaks all of Transformers at import. As if it were not installed:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The same examples in every run and on every machine; no limit of time, which a loaded machine would exceed.
hypothesis.settings.register_profile("same_examples", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same_examples")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
