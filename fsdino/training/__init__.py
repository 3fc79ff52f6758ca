"""Lightning modules and their data."""
