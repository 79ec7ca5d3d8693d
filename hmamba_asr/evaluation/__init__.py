"""Evaluation of finished runs.

`wer` counts errors and aligns words, `significance` says how sure a WER or a difference is, `breakdown` where errors lie,
`boundaries` how learned chunks relate to phones and words, `efficiency` how fast and how large. `results` is the file that a run
leaves, `summary` the Markdown tables of many, `compare` sets two runs side by side, and `report` with `figures` is an HTML page.
"""
