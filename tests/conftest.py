import os
import sys
from pathlib import Path

import pytest
import speechbrain.utils.importutils as importutils
import torch

# Fixtures that several folders of tests share.
pytest_plugins = ["recipes", "results_files"]

# Where there is no GPU, Triton kernels run in Triton's interpreter. It looks at this when the kernels are
# imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    # Hypothesis asks every loaded module for its file. SpeechBrain's lazy modules answer by importing
    # packages that are not installed, and the ImportError would end the session.
    importutils.LazyModule.__file__ = None


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


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
