"""The HTTP service: references in, memories kept, images in, masks out. Only `command` is imported from elsewhere."""
