"""What the page does, without the page: examples in, masks of every method out, files to keep."""

from __future__ import annotations

import csv
import io
import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fsdino.base.drawn import caution
from fsdino.base.memory import image_tensor
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference, image_array, reference_arrays
from fsdino.base.result import Segmentation
from fsdino.methods.prototype import PrototypeMethod
from fsdino.metrics.threshold import choose_threshold
from fsdino.predict.memory_file import SavedMemory, save_memory, thumbnail

PROTOTYPE = "prototype"
MAX_EXAMPLES, MAX_IMAGES = 20, 40  # of one visitor: both are held in memory
Click = tuple[float, float, bool]  # x, y in pixels of the image, and whether the object is there
NOTHING = np.zeros((0, 0), np.float32)
_keys = itertools.count()


@dataclass(frozen=True, eq=False)
class Example:
    """An example as it was given, with a mask or with hints, and the mask that it comes down to."""

    reference: Reference
    mask: np.ndarray  # (H, W) uint8 in {0, 1}
    key: int = field(default_factory=_keys.__next__)

    @property
    def as_mask(self) -> Reference:
        """The same for methods that know masks alone."""
        return Reference(self.reference.image, mask=self.mask, name=self.reference.name)


@dataclass(eq=False)
class Card:
    """An image (H, W, 3) uint8 to search, corrections of the answer, and the result of each method."""

    name: str
    image: np.ndarray
    # Replaced, never changed in place: a search in another thread may be reading them.
    clicks: list[Click] = field(default_factory=list)
    found: dict[str, Segmentation] = field(default_factory=dict)
    key: int = field(default_factory=_keys.__next__)


@dataclass
class Session:
    """What one visitor has given and got; what is given may change while a search is running.

    Args:
        draft: name and image (H, W, 3) uint8 on the drawing board.
        searched: the examples of the last search.
        memories: method to itself and what it remembers of those.
        samples: how often a sample was asked for: each time it is another.
        cautioned: whether it was said that the model is not made for such images.
        emptied: whether it was put away, and the visitor does not know yet.
    """

    draft: tuple[str, np.ndarray] | None = None
    examples: list[Example] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    searched: tuple[Example, ...] = ()
    memories: dict[str, tuple[FewShotMethod, Any]] = field(default_factory=dict)
    samples: int = 0
    cautioned: bool = False
    emptied: bool = False

    @property
    def held(self) -> int:
        """Bytes of all images and masks."""
        images = [self.draft[1]] if self.draft is not None else []
        images += [array for one in self.examples for array in (np.asarray(one.reference.image), one.mask)]
        images += [array for card in self.cards for array in (card.image, *(one.mask for one in card.found.values()))]
        return sum(array.nbytes for array in images)

    def put_away(self) -> None:
        """Let go of everything, since others need the memory."""
        if self.held:
            self.draft, self.examples, self.cards, self.searched, self.memories = None, [], [], (), {}
            self.emptied = True

    def card(self, key: int) -> Card | None:
        """The image of that key; None where it was taken away meanwhile."""
        return next((card for card in self.cards if card.key == key), None)


class Studio:
    """Runs one or more methods on the same examples and images.

    Args:
        main: the method whose answers are corrected and whose memory is kept.
        name: what the page calls it.
        others: name to further methods; `PROTOTYPE` to None compares with cosine prototypes of the main encoder.
    """

    def __init__(self, main: FewShotMethod, name: str, others: Mapping[str, FewShotMethod | None]) -> None:
        self.name, self.main, self.others = name, main, dict(others)

    @property
    def names(self) -> list[str]:
        """All methods, the main one first."""
        return [self.name, *self.others]

    def example(self, reference: Reference) -> Example:
        """Check a reference and draw its mask where it has hints alone; a ValueError if it cannot be used."""
        if reference.mask is not None:
            return Example(reference, reference_arrays(reference)[1].astype(np.uint8))
        if not self.main.takes_hints:
            raise ValueError(f"{self.name} learns from masks alone; outline or paint the object.")
        return Example(reference, self._drawn(reference))

    def search(self, session: Session, names: Sequence[str], *, only: Card | None = None) -> None:
        """Find what the examples show; each image's card gets its results.

        Args:
            session: examples, images and corrections, as they are now.
            names: which of `names` to ask.
            only: search this image alone, and keep what other methods found in it.
        """
        # Copies, since the visitor may add or remove while this runs.
        examples, cards = tuple(session.examples), list(session.cards) if only is None else [only]
        if all(example.reference.negative for example in examples):
            raise ValueError("there is no example of the object yet; draw one and add it.")
        # Examples are compared by identity: drawing one anew makes another, and only then is remembered anew.
        if examples != session.searched:
            session.searched, session.memories = examples, {}
        results = [{} if only is None else dict(card.found) for card in cards]
        for name in names:
            method, memory = self._remembered(session, name)
            for card, found in zip(cards, results):
                answer = ask(method, memory, card.image, card.clicks if name == self.name else [])
                # The page shows masks alone, and probabilities are four times as large.
                found[name] = replace(answer, probs=NOTHING)
        # All at once at the end: an error on the way leaves the older answers, not a mixture.
        for card, found in zip(cards, results):
            card.found = found

    def _remembered(self, session: Session, name: str) -> tuple[FewShotMethod, Any]:
        """A method and its memory of the searched examples, made once."""
        if name not in session.memories:
            method, references = self._ready(name, session.searched)
            session.memories[name] = method, method.remember(references)
        return session.memories[name]

    def _ready(self, name: str, examples: Sequence[Example]) -> tuple[FewShotMethod, list[Reference]]:
        """A method and the examples in the form that it knows."""
        masks = [example.as_mask for example in examples if not example.reference.negative]
        if name == self.name:
            return self.main, [example.reference for example in examples] if self.main.takes_negatives else masks
        other = self.others[name]
        if other is not None:
            return other, masks
        return prototype_of(self.main, masks), masks

    def caution(self, session: Session) -> str | None:
        """What a visitor should know about this model and these images, said once; None where there is nothing."""
        if session.cautioned:
            return None
        found = caution(self._fingerprint, [card.image for card in session.cards])
        session.cautioned = found is not None
        return found

    def save_memory(self, session: Session, class_name: str, path: Path) -> Path:
        """Write what the main method remembers of the examples of the last search as a .fsmem file."""
        _, memory = self._remembered(session, self.name)
        shown = next(example for example in session.searched if not example.reference.negative)
        small = thumbnail(np.asarray(shown.reference.image), shown.mask)
        return save_memory(SavedMemory(class_name, self._fingerprint, self.main.pack(memory), small), path)

    @cached_property
    def _fingerprint(self) -> str:
        """The main method's, computed once, since it reads all weights."""
        return self.main.fingerprint()

    def _drawn(self, reference: Reference) -> np.ndarray:
        """The mask (H, W) uint8 that the main method draws from hints."""
        mask = self.main.draw_mask(reference).astype(np.uint8)
        if not mask.any():
            raise ValueError(f"{reference.name}: the marks gave an empty mask; add a click on the object, or paint it.")
        return mask


def ask(method: FewShotMethod, memory: object, image: np.ndarray, clicks: Sequence[Click]) -> Segmentation:
    """Segment an image, with corrections where there are some."""
    if not clicks:
        return method.segment(memory, image)
    points, labels = [(x, y) for x, y, _ in clicks], [int(on) for _, _, on in clicks]
    return method.refine(memory, image, points, labels)


@torch.no_grad()
def prototype_of(model: FewShotMethod, references: Sequence[Reference]) -> PrototypeMethod:
    """The training-free baseline on a model's own encoder, its threshold chosen on the references themselves."""
    encoder = model.shared_encoder()
    if encoder is None:
        raise ValueError("the prototype comparison needs an FS-DINO model, whose encoder it shares.")
    method = PrototypeMethod(encoder, max(encoder.taps), 0.0, resize_mode=model.resize.mode).eval()
    memory = method.remember(references)
    images = [image_tensor(image_array(one.image, one.name)).to(model.device) for one in references]
    scores = method.scores(memory, torch.stack([model.resize.image(image) for image in images]))
    # Fine enough to judge a threshold by, and the same for references of any size.
    side = 4 * scores.shape[-1]
    fine = F.interpolate(scores[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
    truths = [model.resize.truth(torch.from_numpy(reference_arrays(one)[1]).long()) for one in references]
    small = [F.interpolate(t[None, None].float(), (side, side), mode="nearest-exact")[0, 0].numpy() for t in truths]
    grid = np.linspace(-0.4, 0.8, 61).tolist()
    method.score_threshold = choose_threshold(list(fine), small, [0] * len(small), grid).threshold
    return method


def masks_zip(session: Session, path: Path) -> Path:
    """Write every result as a mask (0 and 255, at the image's own size) and a table of scores into one archive."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("image", "method", "present", "presence", "score", "pixels"))
    # Stored, not deflated: PNG is compressed already.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, card in enumerate(list(session.cards), start=1):
            for method, found in card.found.items():
                mask, presence = found.mask, "" if found.presence is None else f"{found.presence:.4f}"
                row = (card.name, method, found.present, presence, f"{found.score:.4f}", int(mask.sum()))
                writer.writerow(row)
                buffer = io.BytesIO()
                Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG")
                stem = _file_name(f"{number:02d} {Path(card.name).stem}")
                archive.writestr(f"{_file_name(method)}/{stem}.png", buffer.getvalue())
        archive.writestr("scores.csv", table.getvalue())
    return path


def _file_name(text: str) -> str:
    """A text as a file name of any system."""
    return "".join(char if char.isalnum() or char in " -_" else "_" for char in text).strip() or "unnamed"
