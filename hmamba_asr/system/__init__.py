"""Files, hardware, memory, text tables and the layout of a run folder: what every room may use."""
