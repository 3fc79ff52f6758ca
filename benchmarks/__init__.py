"""Measurements of this package; `benchmarks/README.md` says which module makes which table."""
