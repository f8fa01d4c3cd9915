"""One thread a process, no network, and caches of its own for every test session."""
import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
_caches = tempfile.TemporaryDirectory(prefix="shimmer-tests-")
os.environ["HF_HOME"] = os.path.join(_caches.name, "huggingface")
os.environ["SHIMMER_CACHE"] = os.path.join(_caches.name, "shimmer")

import pytest
import torch
from hypothesis import settings

# A few examples of each property at every change, many every night: HYPOTHESIS_PROFILE=full.
settings.register_profile("few", deadline=None, print_blob=True, max_examples=25)
settings.register_profile("full", deadline=None, print_blob=True, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))
