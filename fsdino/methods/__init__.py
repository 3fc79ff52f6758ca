"""The other systems behind the package's remember / segment contract: prototypes, PerSAM-like, SANSA, FSSAM."""
