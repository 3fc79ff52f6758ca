"""The Hugging Face Hub: `from_pretrained`, `save_pretrained` and `push_to_hub` for segmenters, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn

ModelT = TypeVar("ModelT", bound="HubModel")

_CARD = """---
license: apache-2.0
library_name: fsdino
pipeline_tag: image-segmentation
tags: [few-shot, segmentation, dinov2, distillation, model_hub_mixin, pytorch_model_hub_mixin]
---

# FS-DINO: {variant} segmenter on {encoder}

Segments an object in any image after seeing one or a few annotated images of it. One frozen DINOv2-style encoder,
an adapter distilled from SAM's encoder, and a small segmenter; SAM itself is not needed.

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

Input {img_size} px ({resize_mode}); blocks {taps} of the encoder are read.
Fingerprint `{fingerprint}`, format {format_version}.

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

Apache-2.0 for these weights and the code. The encoder and the teacher that they come from have their own terms
(DINOv2 and SAM: Apache-2.0; DINOv3: its own licence).
"""


class HubModel(PyTorchModelHubMixin):
    """Base of models that live on the Hub as the folder that `fsdino.base.storage.save_pretrained` writes."""

    def _save_pretrained(self, save_directory: Path) -> None:
        from fsdino.base.storage import save_pretrained

        save_pretrained(self, save_directory)  # type: ignore[arg-type]

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls: type[ModelT],
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> ModelT:
        from fsdino.base.storage import load_segmenter

        folder = Path(model_id)
        if not folder.is_dir():
            folder = download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return load_segmenter(folder)  # type: ignore[return-value]


def download(repo_id: str, **options: Any) -> Path:
    """Fetch a model's folder from the Hub, or take it from the local cache.

    Args:
        repo_id: "owner/name".
        options: Handed to `huggingface_hub.snapshot_download`.

    Returns:
        The local folder.

    Raises:
        FileNotFoundError: If there is no such model, or no network and no local copy.
    """
    from fsdino.base.storage import CONFIG_FILE, WEIGHTS_FILE

    try:
        return Path(snapshot_download(repo_id, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE], **options))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {repo_id!r} and no public model of that name on the Hub."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"there is no folder {repo_id!r}, and the Hub cannot be reached ({type(error).__name__}); "
            "check the path, or the network."
        ) from error


def model_card(model: nn.Module, info: Mapping[str, Any]) -> str:
    """Write the card of a model.

    Args:
        model: The segmenter, for the sizes of its parts.
        info: The content of its config.json.

    Returns:
        Markdown with the Hub's metadata on top.
    """
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    sizes["total"] = sum(p.numel() for p in model.parameters())
    results = info.get("results") or {}
    rows = "\n".join(f"| {name} | {value} |" for name, value in results.items())
    segmenter = dict(info["segmenter"])
    return _CARD.format(
        variant=segmenter["variant"],
        encoder=segmenter["encoder"],
        img_size=segmenter["img_size"],
        resize_mode=segmenter["resize_mode"],
        taps=", ".join(str(tap) for tap in sorted({segmenter["adapter_tap"], *segmenter["reader_taps"]})),
        references="masks, clicks, boxes and scribbles, mixed freely, and what is not meant; clicks correct results"
        if segmenter.get("promptable")
        else "images with masks, one or several, and what is not meant",
        parts="\n".join(f"| {name} | {count:,} |" for name, count in sizes.items() if count),
        fingerprint=info.get("fingerprint", ""),
        format_version=info["format_version"],
        results=f"| measured | value |\n|---|---:|\n{rows}" if rows else "No results were recorded with this export.",
    )
