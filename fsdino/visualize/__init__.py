"""Images of masks: overlays, episode strips and sheets of strips.

NumPy arrays, PIL images or torch tensors go in, RGB uint8 comes out. Nothing here imports torch, which takes seconds.
"""

from fsdino.visualize.overlay import IGNORE, PALETTE, overlay, palette_color, to_image, to_labels, write_png
from fsdino.visualize.strips import episode_strip, mask_iou, row_of_panels, sheet

__all__ = [
    "IGNORE",
    "PALETTE",
    "episode_strip",
    "mask_iou",
    "overlay",
    "palette_color",
    "row_of_panels",
    "sheet",
    "to_image",
    "to_labels",
    "write_png",
]
