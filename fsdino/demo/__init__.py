"""A local page to try a model: draw on an example, drop images, see masks. Only `page` and `serve` need gradio."""
