"""SAM2 as SANSA and FSSAM use it."""
