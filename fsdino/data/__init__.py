"""Data sets, each reduced to a `ClassIndex`, and episodes drawn from them."""
