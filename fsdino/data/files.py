"""Finding a data set's files under the root that a user gave, and saying what is not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


class DataSetError(ValueError):
    """A data set on disk is missing, incomplete or damaged; the message names the file and the remedy."""


def existing(path: str | Path, what: str) -> Path:
    """Insist that a file or folder is there; if not, the message says what it is and how far the path exists."""
    found = Path(path)
    if not found.exists():
        # The deepest folder that exists shows where a mistyped root departs from what is on disk.
        upper = next((p for p in found.absolute().parents if p.exists()), Path("/"))
        raise DataSetError(
            f"'{found}' ({what}) does not exist, '{upper}' does: check --root, or --data.root of a recipe, or fetch "
            "what is missing (`fsdino data check NAME --root DIR` lists the files, `fsdino plan RECIPE` what it needs)."
        )
    return found


def first_existing(root: str | Path, folders: Sequence[str], marker: str) -> Path:
    """The first of some folders under the root ("." is the root itself) that holds a marker file or folder."""
    base = existing(root, "the data set's root")
    for folder in folders:
        if (base / folder / marker).exists():
            return base / folder
    places = " nor ".join(f"'{base / folder / marker}'" for folder in (folders[0], folders[-1]))
    raise DataSetError(
        f"found neither {places}: give --root as the folder that holds it "
        "(`fsdino data check NAME --root DIR` lists what is missing)."
    )


def read_names(path: str | Path) -> list[str]:
    """Lines of a text file, without empty ones."""
    lines = existing(path, "a list of names").read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataSetError(f"list '{path}' is empty: copy or download it again.")
    return names


def shown(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what systems and editors hide there: `._0.jpg`, `.ipynb_checkpoints`."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def files_by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Files of a folder by name without suffix, sorted; hidden ones (`._0.jpg`) do not count."""
    wanted = tuple(suffixes)
    found: dict[str, Path] = {}
    for path in shown(folder):
        if path.suffix.lower() in wanted and path.is_file():
            if path.stem in found:
                raise DataSetError(f"'{found[path.stem]}' and '{path.name}' have the same name: remove one.")
            found[path.stem] = path
    return found


def with_masks(
    images: dict[str, Path], masks: dict[str, Path], expected: Path, remedy: str = "add the masks or remove the images"
) -> dict[str, tuple[Path, Path]]:
    """Each image (name -> file) with the mask of its name; one without a mask is refused, masks may be left over.

    `expected` is where the mask of a name should be, with `*` for the name; `remedy` ends the message.
    """
    lacking = sorted(set(images) - set(masks))
    if lacking:
        raise DataSetError(
            f"image '{images[lacking[0]]}' has no mask '{str(expected).replace('*', lacking[0])}' "
            f"({len(lacking)} such image(s)): {remedy}."
        )
    return {name: (path, masks[name]) for name, path in images.items()}
