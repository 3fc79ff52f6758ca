"""Teachers in segment-anything's format: official SAM checkpoints, the bundled tiny one, or any other size."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor

from fsdino.base.digest import file_sha256, weights_sha256
from fsdino.teachers.architecture import SAM_CONFIGS, SamConfig, build_sam, config_from_state_dict

# Each official name ends in the first digits of the file's sha256; a download is held to them.
SAM_URLS: dict[str, str] = {
    "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
    "vit_h": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
}
_CONFIG_KEY = "sam_config"


class SamTeacher:
    """A SAM, frozen and put in eval mode, that gives the embeddings a student learns; messages call it `name`."""

    # Not an nn.Module: a LightningModule that holds one would write its weights into every checkpoint of the student.
    def __init__(self, sam: Sam, config: SamConfig, name: str = "sam") -> None:
        self.sam = sam.eval().requires_grad_(False)
        self.config = config
        self.name = name
        self._fingerprint: str | None = None
        self.bf16 = False
        self._encode: Callable[[Tensor], Tensor] = self.sam.image_encoder

    def run_as(self, bf16: bool = False, compile: bool = False) -> SamTeacher:
        """Chooses how the image encoder runs; returns itself.

        Args:
            bf16: products in bfloat16, sums between blocks in float32; another fingerprint, since the maps differ.
            compile: through torch.compile.
        """
        self.bf16, self._fingerprint = bf16, None
        self._encode = torch.compile(self.sam.image_encoder) if compile else self.sam.image_encoder
        return self

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, sha256: str | None = None) -> SamTeacher:
        """Opens a `.pth` or `.safetensors` in segment-anything's format; the sizes come from its weights.

        Args:
            checkpoint: a file, an http(s) URL (kept in torch's hub folder), or vit_b / vit_l / vit_h for the
                official file.
            sha256: the file's expected digest; an official file is held to the digits in its name in any case.

        Raises:
            FileNotFoundError: if there is no such file.
            ConnectionError: if it cannot be downloaded.
            ValueError: for a wrong digest or a file that holds no SAM.
        """
        path = _local_file(str(checkpoint), sha256)
        if sha256 is not None and (got := file_sha256(path)) != sha256.lower():
            raise ValueError(f"teacher {path} has sha256 {got}, expected {sha256.lower()}; download it again.")
        state, config = _read_state(path)
        sam = build_sam(config)
        _load_strict(sam, state, path)
        return cls(sam, config, name=path.stem)

    @classmethod
    def random(cls, name: str = "tiny", seed: int = 0) -> SamTeacher:
        """A teacher of a size of `SAM_CONFIGS` with random weights, for tests and for measuring speed.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in SAM_CONFIGS:
            raise ValueError(f"unknown SAM size {name!r}; use one of {', '.join(SAM_CONFIGS)}.")
        return cls(build_sam(SAM_CONFIGS[name], seed=seed), SAM_CONFIGS[name], name=f"{name}-random-{seed}")

    @property
    def img_size(self) -> int:
        """Side of the model's input in pixels."""
        return self.config.img_size

    @property
    def grid(self) -> int:
        """Side of the embedding's grid."""
        return self.config.grid

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return self.config.prompt_dim

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape of one image's embedding, (D, grid, grid)."""
        return (self.dim, self.grid, self.grid)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.sam.pixel_mean.device

    @property
    def fingerprint(self) -> str:
        """sha256 over the sizes and all weights; equal for equal teachers, whatever file they came from."""
        # Kept: a teacher is frozen, and vit_h takes seconds to digest.
        if self._fingerprint is None:
            told = _config_json(self.config) + (" bf16" if self.bf16 else "")
            self._fingerprint = weights_sha256(told, self.sam.state_dict())
        return self._fingerprint

    def to(self, device: torch.device | str) -> SamTeacher:
        """Moves the model; returns itself."""
        self.sam.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Image embeddings, the target of the distillation.

        Args:
            images: (N, 3, S, S) float in [0, 1], any S; squashed to the model's input.

        Returns:
            (N, D, grid, grid) float32.
        """
        images = images.to(self.device)
        if images.shape[-2:] != (self.img_size, self.img_size):
            size = (self.img_size, self.img_size)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        # SAM's mean and deviation are for pixels of 0 to 255.
        pixels = (images * 255 - self.sam.pixel_mean) / self.sam.pixel_std
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return self._encode(pixels).float()


def save_sam(sam: Sam, config: SamConfig, path: str | Path) -> None:
    """Writes a SAM with its sizes to a `.safetensors` file, whose folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    save_file(state, path, metadata={_CONFIG_KEY: _config_json(config)})


def _local_file(checkpoint: str, sha256: str | None) -> Path:
    """The file of a path, an official name or a URL."""
    url = SAM_URLS.get(checkpoint, checkpoint)
    if urlparse(url).scheme in ("http", "https"):
        # An official file is held to its published digits alone: a mistyped `sha256` must not delete a good file.
        published = re.search(r"_([0-9a-f]+)\.pth$", url) if url in SAM_URLS.values() else None
        return _downloaded(url, published[1] if published else (sha256 or "").lower())
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"teacher file {checkpoint} does not exist; give a .pth or .safetensors in segment-anything's format, "
            f"a URL, or one of {', '.join(SAM_URLS)}."
        )
    return path


def _downloaded(url: str, digits: str) -> Path:
    """The file of a URL in torch's hub folder; its sha256 must begin with `digits`, or the file is deleted."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    by_hand = f"or fetch {path.name} by hand and put it at {path}."
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:  # a wrong address, no network, no room on the disk
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"cannot download {url} ({reason}); check the network, {by_hand}") from error
    # Not only after the download: the file may have been put there by hand, or by a version that did not check.
    if digits and not (got := file_sha256(path)).startswith(digits):
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{path} from {url} has sha256 {got}, expected one that begins with {digits}; it was deleted: "
            f"start again to download it anew, {by_hand}"
        )
    return path


def _read_state(path: Path) -> tuple[dict[str, Tensor], SamConfig]:
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"teacher {path} cannot be read ({str(error).splitlines()[0]}); download it again.") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is no SAM checkpoint: it holds a {type(state).__name__}, expected a state dict.")
    if _CONFIG_KEY in metadata:
        return state, SamConfig(**json.loads(metadata[_CONFIG_KEY]))
    try:
        return state, config_from_state_dict(state)
    except KeyError as error:
        raise ValueError(
            f"{path} is no SAM checkpoint: it has no {error.args[0]!r}. Expected segment-anything's keys "
            "image_encoder.*, prompt_encoder.*, mask_decoder.*."
        ) from error


def _load_strict(sam: Sam, state: dict[str, Tensor], path: Path) -> None:
    """Loads all weights or says in one sentence what differs (torch would print hundreds of lines)."""
    expected = sam.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or unexpected or wrong:
        raise ValueError(
            f"{path} does not fit the SAM of its own sizes: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(wrong)} of another shape (first: {(missing + unexpected + wrong)[0]!r}). "
            "Expected segment-anything's keys image_encoder.*, prompt_encoder.*, mask_decoder.*."
        )
    sam.load_state_dict(state)


def _config_json(config: SamConfig) -> str:
    return json.dumps(dataclasses.asdict(config), sort_keys=True)
