"""The bundled weights and how they are made."""
