"""Maps of frozen networks on disk."""
