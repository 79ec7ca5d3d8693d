"""H-Net's own chunking, kept as published and apart from the rest of the package.

Source: Hwang, Wang and Gu, "Dynamic Chunking for End-to-End Hierarchical Sequence Modeling",
https://arxiv.org/abs/2507.07955, section 2.2.

- ``router``: :class:`~hmamba_asr.hnet.router.HNetChunker`, learned boundaries (eq. 4) and the smoothing of
  its chunks.
- ``smoothing``: the moving average over chunks and the way back from chunks to frames (eq. 5 to 9).
- ``ratio_loss``: the loss that holds the number of chunks (eq. 10).

H-Mamba uses ``dechunk`` where its output is frames; everything else serves the H-Net variant alone.
"""
