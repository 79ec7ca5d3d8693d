"""The recogniser, its encoders, and what an encoder returns."""
