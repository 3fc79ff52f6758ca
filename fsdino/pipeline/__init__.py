"""From a recipe to a trained, measured and exported model."""
