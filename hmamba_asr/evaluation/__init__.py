"""Evaluation: error rates (`wer`), processing speed (`efficiency`) and the results table (`report`)."""
