"""Search: from the output of a model to tokens.

The YAMLs name :class:`~hmamba_asr.decoding.greedy.GreedySearch` and
:class:`~hmamba_asr.decoding.beam_search.BeamSearch`. Another search derives from
:class:`~hmamba_asr.decoding.search.Search`, which states what a search must do.

``BeamSearch`` wraps :class:`~hmamba_asr.decoding.beam.JointBeamSearcher`, whose scorers are in
:mod:`~hmamba_asr.decoding.scorers`.
"""
