"""The arithmetic of a step: `ops` is the only door, `reference` holds the plain-PyTorch twin of every operation."""
