"""What results files of earlier versions leave to their YAML."""

from __future__ import annotations

import pytest

from hmamba_asr.evaluation.old_results import chunking_of


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("encoder: !new:hmamba_asr.models.encoder.ConMambaEncoder\n  num_layers: 2\n", []),
        (
            "chunker: &c !new:hmamba_asr.modules.chunking.CTCChunker\n  target_ratio: 3.0\n"
            "encoder: !new:x.Encoder\n  chunker: *c\n",
            [{"kind": "ctc", "ratio": 3.0}],
        ),
        (
            "chunker: !new:hmamba_asr.modules.chunking.FixedStrideChunker\n  stride: 2\n",
            [{"kind": "fixed_stride", "ratio": 2.0}],
        ),
        (
            "a: !new:hmamba_asr.modules.chunking.DynamicChunker\n  target_ratio: 2\n"
            "b: [!new:hmamba_asr.hnet.router.HNetChunker {target_ratio: 1.5}]\n",
            [{"kind": "router", "ratio": 2.0}, {"kind": "router", "ratio": 1.5}],
        ),
    ],
)
def test_what_chunks_is_read_from_the_yaml(text, stages):
    assert chunking_of(text) == stages
