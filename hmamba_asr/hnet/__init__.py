"""H-Net's router, dechunking and ratio loss (eq. 4 to 10).

Source: Hwang, Wang and Gu, "Dynamic Chunking for End-to-End Hierarchical Sequence Modeling",
https://arxiv.org/abs/2507.07955, section 2.2.

- ``router``: :class:`~hmamba_asr.hnet.router.HNetChunker`, learned boundaries (eq. 4).
- ``dechunking``: ``smooth_chunks``, the moving average over chunks (eq. 5), and ``upsample_chunks``, the way
  from chunks to frames (eq. 6 to 9). An H-Mamba with output "frames" upsamples with any chunker.
- ``ratio_loss``: the loss that holds the number of chunks (eq. 10).

Additions to the published form:

- a minimum number of chunks per utterance (``min_chunks``), so that the CTC on the chunks can emit all
  labels;
- no router if N = 1: every frame is a chunk, and the ratio loss is 0;
- two frames that are both zero are alike, where the published cosine is not defined;
- the ratio loss of a target that is still being raised (``current_ratio``), and its schedules
  (:class:`~hmamba_asr.training.losses.RatioLoss`).
"""
