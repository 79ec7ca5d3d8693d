"""Search: from the output of a model to tokens.

The YAMLs name :class:`~hmamba_asr.decoding.greedy.GreedySearch` and
:class:`~hmamba_asr.decoding.search.BeamSearch`. The latter wraps
:class:`~hmamba_asr.decoding.beam.JointBeamSearcher`, whose scorers are in
:mod:`~hmamba_asr.decoding.scorers`.
"""
