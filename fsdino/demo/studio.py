"""What the page does, without the page: examples in, masks of every method out, files to keep."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fsdino.baseline import GRIDS
from fsdino.concepts import Concept, save_concept, thumbnail
from fsdino.methods.prototype import PrototypeMethod
from fsdino.methods.score_cut import choose_cut
from fsdino.models.contract import FewShotMethod, Segmentation
from fsdino.models.reference import Reference, image_tensor, prompt_points, reference_tensors
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict.torch_engine import TorchEngine

PROTOTYPE = "prototype"
MAX_EXAMPLES, MAX_PICTURES = 20, 40  # of one visitor: both are held in memory


@dataclass(frozen=True)
class Example:
    """An example as it was given, and the mask that it comes down to.

    Args:
        reference: With a mask or with hints.
        mask: (H, W) uint8 in {0, 1}.
    """

    reference: Reference
    mask: np.ndarray

    @property
    def as_mask(self) -> Reference:
        """The same for methods that know masks alone."""
        return Reference(self.reference.image, mask=self.mask, name=self.reference.name)


@dataclass
class Session:
    """What one visitor has given and got.

    Args:
        draft: Picture on the drawing board, (H, W, 3) uint8, and its name.
        examples: The examples so far.
        pictures: Name and picture (H, W, 3) uint8 of everything to search.
        clicks: Corrections by picture: x, y in its pixels and whether the object is there.
        found: By picture, method to result; empty before the first search.
        samples: How often a sample was asked for: each time it is another.
    """

    draft: tuple[str, np.ndarray] | None = None
    examples: list[Example] = field(default_factory=list)
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    clicks: dict[int, list[tuple[float, float, bool]]] = field(default_factory=dict)
    found: list[dict[str, Segmentation]] = field(default_factory=list)
    samples: int = 0


class Studio:
    """Runs one or more methods on the same examples and pictures.

    Args:
        main: The method whose answers are corrected and whose concept is kept.
        name: What the page calls it.
        others: Name to further methods; `PROTOTYPE` to None compares with cosine prototypes of the main encoder.
    """

    def __init__(self, main: FewShotMethod, name: str, others: Mapping[str, FewShotMethod | None]) -> None:
        self.name, self.main, self.others = name, main, dict(others)

    @property
    def names(self) -> list[str]:
        """All methods, the main one first."""
        return [self.name, *self.others]

    @property
    def takes_hints(self) -> bool:
        """Whether the main method draws masks from clicks, boxes and scribbles, and corrects its answers by clicks."""
        return isinstance(self.main, FewShotSegmenter) and self.main.sam is not None

    def example(self, reference: Reference) -> Example:
        """Check a reference and draw its mask where it has hints alone.

        Raises:
            ValueError: If the reference cannot be used, or the main method knows no hints.
        """
        if reference.mask is not None:
            return Example(reference, reference_tensors(reference)[1].numpy().astype(np.uint8))
        if not isinstance(self.main, FewShotSegmenter) or not self.takes_hints:
            raise ValueError(f"{self.name} learns from masks alone; outline or paint the object.")
        return Example(reference, drawn_mask(self.main, reference))

    def search(
        self, session: Session, names: Sequence[str], *, only: int | None = None
    ) -> list[dict[str, Segmentation]]:
        """Find what the examples show.

        Args:
            session: Examples, pictures and corrections.
            names: Which of `names` to ask.
            only: Search this picture alone and keep the other results.

        Returns:
            By picture, method to result.

        Raises:
            ValueError: If there is no example, or none that shows the object.
        """
        if all(example.reference.negative for example in session.examples):
            raise ValueError("there is no example of the object yet; draw one and add it.")
        results = [dict(found) for found in session.found] if only is not None else [{} for _ in session.pictures]
        for name in names:
            method, references = self._ready(name, session.examples)
            memory = method.remember(references)
            for i, (_, picture) in enumerate(session.pictures):
                if only is None or i == only:
                    clicks = session.clicks.get(i, []) if name == self.name else []
                    results[i][name] = ask(method, memory, picture, clicks)
        return results

    def _ready(self, name: str, examples: Sequence[Example]) -> tuple[FewShotMethod, list[Reference]]:
        """A method and the examples in the form that it knows."""
        masks = [example.as_mask for example in examples if not example.reference.negative]
        if name == self.name:
            known = isinstance(self.main, FewShotSegmenter)
            return self.main, [example.reference for example in examples] if known else masks
        other = self.others[name]
        if other is not None:
            return other, masks
        return prototype_of(self.main, masks), masks

    def concept(self, session: Session, class_name: str, path: Path) -> Path:
        """Write what the main method remembers of the examples as a .fsmem file."""
        engine = TorchEngine(self.main)
        _, references = self._ready(self.name, session.examples)
        shown = next(example for example in session.examples if not example.reference.negative)
        small = thumbnail(np.asarray(shown.reference.image), shown.mask)
        arrays = engine.pack(self.main.remember(references))
        return save_concept(Concept(class_name, engine.fingerprint, arrays, small), path, positional=engine.positional)


def ask(
    method: FewShotMethod, memory: object, picture: np.ndarray, clicks: Sequence[tuple[float, float, bool]]
) -> Segmentation:
    """Segment a picture, with corrections where there are some."""
    if not clicks:
        return method.segment(memory, picture)
    points, labels = [(x, y) for x, y, _ in clicks], [int(on) for _, _, on in clicks]
    return method.refine(memory, picture, points, labels)


@torch.no_grad()
def drawn_mask(model: FewShotSegmenter, reference: Reference) -> np.ndarray:
    """The mask (H, W) uint8 that a segmenter draws from a reference's hints.

    Raises:
        ValueError: If the hints cannot be used, or mark nothing.
    """
    image = image_tensor(reference.image, reference.name).to(model.device)
    size = (image.shape[-2], image.shape[-1])
    points, labels = prompt_points(reference, size, model.resize)
    feats = model.encoder(model.resize.image(image)[None])
    logits = model.draw(feats, points.to(model.device)[None], labels.to(model.device)[None])[0, 0]
    mask = (model.resize.invert(logits, size) > 0).cpu().numpy().astype(np.uint8)
    if not mask.any():
        raise ValueError(f"{reference.name}: the marks gave an empty mask; add a click on the object, or paint it.")
    return mask


@torch.no_grad()
def prototype_of(model: FewShotMethod, references: Sequence[Reference]) -> PrototypeMethod:
    """The training-free baseline on a model's own encoder, its cut chosen on the references themselves.

    Args:
        model: Gives the frozen encoder.
        references: With masks.

    Returns:
        The method.

    Raises:
        ValueError: If the model has no encoder of its own to share.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(model, FewShotSegmenter) or encoder is None:
        raise ValueError("the prototype comparison needs an FS-DINO model, whose encoder it shares.")
    method = PrototypeMethod(encoder, max(model.config.reader_taps), 0.0, resize_mode=model.resize.mode).eval()
    memory = method.remember(references)
    images = [image_tensor(reference.image, reference.name).to(model.device) for reference in references]
    scores = method.scores(memory, torch.stack([model.resize.image(image) for image in images]))
    side = 4 * scores.shape[-1]
    fine = F.interpolate(scores[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
    masks = [torch.from_numpy(np.asarray(reference.mask) != 0) for reference in references]
    truths = [model.resize.truth(mask.long()) for mask in masks]
    small = [F.interpolate(t[None, None].float(), (side, side), mode="nearest-exact")[0, 0].numpy() for t in truths]
    method.cut = choose_cut(list(fine), small, [0] * len(small), GRIDS["fg_bg"].tolist()).cut
    return method


def masks_zip(session: Session, path: Path) -> Path:
    """Write every result as a mask (0 and 255, at the picture's own size) and a table of scores into one archive.

    Args:
        session: With results.
        path: The .zip file.

    Returns:
        The path.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("picture", "method", "present", "presence", "score", "pixels"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for number, ((name, _), results) in enumerate(zip(session.pictures, session.found), start=1):
            for method, found in results.items():
                mask = found.mask.cpu().numpy()
                row = (name, method, found.present, f"{found.presence:.4f}", f"{found.score:.4f}", int(mask.sum()))
                writer.writerow(row)
                buffer = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG")
                stem = _file_name(f"{number:02d} {Path(name).stem}")
                archive.writestr(f"{_file_name(method)}/{stem}.png", buffer.getvalue())
        archive.writestr("scores.csv", table.getvalue())
    return path


def _file_name(text: str) -> str:
    """A text as a file name of any system."""
    return "".join(char if char.isalnum() or char in " -_" else "_" for char in text).strip() or "unnamed"
