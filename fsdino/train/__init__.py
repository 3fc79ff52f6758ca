"""The Lightning modules that train; no layers are defined here."""
