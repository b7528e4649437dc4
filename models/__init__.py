"""Models: torch, no file formats. "Here are tensors."."""
