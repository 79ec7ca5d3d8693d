"""hmamba_asr: Mamba speech recognition on SpeechBrain.

The names below load lazily (PEP 562): ``import hmamba_asr`` alone imports neither PyTorch nor SpeechBrain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmamba_asr.decoding.beam import JointBeamSearcher as JointBeamSearcher
    from hmamba_asr.inference.recogniser import Recogniser as Recogniser
    from hmamba_asr.inference.recogniser import load as load
    from hmamba_asr.models.asr import ASRModel as ASRModel
    from hmamba_asr.models.conmamba import ConMambaEncoder as ConMambaEncoder
    from hmamba_asr.models.hmamba import HierarchicalEncoder as HierarchicalEncoder
    from hmamba_asr.modules.bimamba import BiMamba as BiMamba
    from hmamba_asr.ops.selective_scan import selective_scan as selective_scan

__version__ = "0.2.0"

_HOMES = {  # name -> the module that defines it
    "ASRModel": "hmamba_asr.models.asr",
    "BiMamba": "hmamba_asr.modules.bimamba",
    "ConMambaEncoder": "hmamba_asr.models.conmamba",
    "HierarchicalEncoder": "hmamba_asr.models.hmamba",
    "JointBeamSearcher": "hmamba_asr.decoding.beam",
    "Recogniser": "hmamba_asr.inference.recogniser",
    "load": "hmamba_asr.inference.recogniser",
    "selective_scan": "hmamba_asr.ops.selective_scan",
}
__all__ = [
    "ASRModel",
    "BiMamba",
    "ConMambaEncoder",
    "HierarchicalEncoder",
    "JointBeamSearcher",
    "Recogniser",
    "__version__",
    "load",
    "selective_scan",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
