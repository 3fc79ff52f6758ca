"""Whether the tests would notice: code changed line by line."""
