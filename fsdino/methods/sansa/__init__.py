"""SANSA (arXiv 2505.21795)."""
