"""FSSAM (arXiv 2505.14100)."""
