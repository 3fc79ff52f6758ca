"""Few-shot scores, thresholds and intervals."""
