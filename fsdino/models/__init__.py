"""The method and its parts, one box of the figure a file. No lightning here."""
