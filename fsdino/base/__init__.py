"""What every system shares: the method contract, references, results, images, files."""
