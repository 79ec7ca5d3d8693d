"""Evaluation of finished runs.

`wer` counts errors and aligns words, `significance` says how sure a WER or a difference is, `breakdown` where
errors lie, `boundaries` how chunks relate to phones and words and `stability` whether they stay, `efficiency`
how fast and how large, `speed` by which protocol, `claims` what of it all is supported. `results` is the file
that a run leaves, `summary` the Markdown tables of many, `compare` sets two runs side by side, and `report`
with `figures` is an HTML page.
"""
