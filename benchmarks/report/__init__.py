"""Tables, plots and images of the READMEs, made from `benchmarks/results`."""
