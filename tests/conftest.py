import os
import sys
from pathlib import Path

import pytest
import speechbrain.utils.importutils as importutils
import torch

from hmamba_asr.ops.dispatch import unavailable_reason

# Fixtures that several folders of tests share.
pytest_plugins = ["recipes", "results_files", "textgrids"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Where there is no GPU, Triton kernels run in Triton's interpreter. Triton reads this variable when the
# kernels are imported.
if DEVICE.type != "cuda":
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    # Hypothesis asks every loaded module for its file. SpeechBrain's lazy modules answer by importing
    # packages that are not installed, and the ImportError would end the session.
    importutils.LazyModule.__file__ = None


@pytest.hookimpl(tryfirst=True)  # before -m selects by marker
def pytest_collection_modifyitems(items):
    """Tests of kernels run on the GPU, and are marked so, where there is one; in the interpreter
    elsewhere."""
    reason = unavailable_reason(DEVICE)
    for item in items:
        if item.get_closest_marker("gpu") and DEVICE.type != "cuda":
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
        if item.get_closest_marker("kernels"):
            if DEVICE.type == "cuda":
                item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    """Return where kernels run: the GPU, or the CPU with Triton's interpreter."""
    return DEVICE


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def speech_folder() -> Path:
    """Recordings in LibriSpeech's layout, named by the environment."""
    folder = os.environ.get("HMAMBA_SPEECH")
    if not folder:
        pytest.skip("HMAMBA_SPEECH names no folder of recordings")
    return Path(folder)


@pytest.fixture
def python() -> str:
    return sys.executable
