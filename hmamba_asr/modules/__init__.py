"""What encoders are built of: front-end, bidirectional Mamba, ConMamba block and chunkers."""
