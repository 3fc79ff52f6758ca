"""The model card that lies beside every saved model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsdino.base.catalog import APACHE, entry_of

_CARD = """---
license: {licence}
library_name: fsdino
pipeline_tag: image-segmentation
tags: [few-shot, segmentation, dinov2, distillation, model_hub_mixin, pytorch_model_hub_mixin]
---

# {title}: {summary}

Segments an object in any image after seeing one or a few annotated images of it.

```python
import fsdino
from PIL import Image

model = fsdino.load("path/or/hub-id")
memory = model.remember([fsdino.Reference(Image.open("cat.jpg"), mask=Image.open("cat.png"))])
result = model.segment(memory, Image.open("other.jpg"))  # result.mask, result.score, result.present
```

References: {references}. A folder of images at once: `fsdino predict --model path/or/hub-id --support refs/ --images
photos/ --out masks/`; a page to try it: `fsdino demo --model path/or/hub-id`.

| part | parameters |
|---|---:|
{parts}

Input {img_size} px ({resize_mode}). Fingerprint `{fingerprint}`, format {format_version}.

## Results

{results}

## Intended use

Masks of things that a few examples show: labelling aid, counting, cut-outs, research on few-shot segmentation.

## Limits

- It was trained for, and measured on, the data that the results name. On other images expect less, and measure.
- It finds what looks like the references; unusual views, tiny objects and crowded scenes are the usual failures.
- The score and the answer "absent" are estimates. Check them on your own images before anything depends on them.
- Not for identifying people, nor for decisions about them.

## Licence

Apache-2.0 for the code and for what was trained here. The encoder and the teacher that it comes from have their own
terms (DINOv2, SAM and SAM2: Apache-2.0; DINOv3: its own licence){encoder_licence}.
"""


def model_card(model: Any, info: Mapping[str, Any]) -> str:
    """Markdown with the Hub's metadata on top, from a `FewShotMethod` and the content of its config.json (`info`)."""
    sizes = {**model.part_sizes(), "total": sum(p.numel() for p in model.parameters())}
    rows = "\n".join(f"| {name} | {value} |" for name, value in (info.get("results") or {}).items())
    references = "masks, clicks, boxes and scribbles, mixed freely" if model.takes_hints else "images with masks"
    references += ", and what is not meant" if model.takes_negatives else ""
    entry = entry_of(info["args"].get("encoder") or "")
    licence = APACHE if entry is None else entry.licence
    return _CARD.format(
        # The Hub knows a few licences by name; any other has to be called so.
        licence=licence if licence == APACHE else f"other\nlicense_name: {licence}",
        encoder_licence="" if entry is None else f"; the weights of this encoder, {entry.timm}: {licence}",
        title=model.title,
        summary=model.summary(),
        img_size=model.img_size,
        resize_mode=model.resize.mode,
        references=references + ("; clicks correct results" if model.takes_clicks else ""),
        parts="\n".join(f"| {name} | {count:,} |" for name, count in sizes.items()),
        fingerprint=info["fingerprint"],
        format_version=info["format_version"],
        results=f"| measured | value |\n|---|---:|\n{rows}" if rows else "No results were recorded with this export.",
    )
