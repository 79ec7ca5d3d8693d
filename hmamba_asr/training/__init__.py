"""Training of recognisers and language models: brains, losses, checkpoints, journal and command line."""
