"""Teachers in segment-anything's format: official SAM checkpoints, the bundled tiny one, or any other size."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor

from fsdino.base.digest import file_sha256
from fsdino.teachers.architecture import SAM_CONFIGS, SamConfig, build_sam, config_from_state_dict
from fsdino.teachers.prompting import decode_prompts

SAM_URLS: dict[str, str] = {
    "vit_b": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "vit_l": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
    "vit_h": "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
}
_CONFIG_KEY = "sam_config"


class SamTeacher:
    """A frozen SAM that gives embeddings and masks; not a module, so no LightningModule can swallow its weights.

    Args:
        sam: the model; it is frozen and put in eval mode.
        config: its sizes.
        name: how messages and manifests call it.
    """

    def __init__(self, sam: Sam, config: SamConfig, name: str = "sam") -> None:
        self.sam = sam.eval().requires_grad_(False)
        self.config = config
        self.name = name
        self._fingerprint: str | None = None

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, sha256: str | None = None) -> SamTeacher:
        """Opens a `.pth` or `.safetensors` in segment-anything's format; the sizes come from its weights.

        Args:
            checkpoint: a file, an http(s) URL (kept in torch's hub folder), or vit_b / vit_l / vit_h for the
                official file.
            sha256: the file's expected digest; checked when given.

        Returns:
            The teacher, on the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for a wrong digest or a file that holds no SAM.
        """
        path = _local_file(str(checkpoint))
        if sha256 is not None and (got := file_sha256(path)) != sha256.lower():
            raise ValueError(f"teacher {path} has sha256 {got}, expected {sha256.lower()}; download it again.")
        state, config = _read_state(path)
        sam = build_sam(config)
        _load_strict(sam, state, path)
        return cls(sam, config, name=path.stem)

    @classmethod
    def random(cls, name: str = "tiny", seed: int = 0) -> SamTeacher:
        """A teacher with random weights, for tests and for measuring speed.

        Args:
            name: one of `SAM_CONFIGS`.
            seed: of the weights.

        Returns:
            The teacher, on the CPU.

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
        if self._fingerprint is None:
            digest = hashlib.sha256(_config_json(self.config).encode())
            for key, value in sorted(self.sam.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def to(self, device: torch.device | str) -> SamTeacher:
        """Moves the model.

        Args:
            device: where to.

        Returns:
            Itself.
        """
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
        return self.sam.image_encoder((images * 255 - self.sam.pixel_mean) / self.sam.pixel_std).float()

    @torch.no_grad()
    def decode_points(self, embedding: Tensor, points: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Masks from clicks, one prompt per embedding.

        Args:
            embedding: (N, D, grid, grid); repeat an image's embedding for several prompts.
            points: (N, P, 2) clicks as (x, y) in pixels of the square image of side `size`.
            labels: (N, P) 1 = on the object, 0 = off it.
            size: side in pixels of the image that the clicks and the masks refer to.

        Returns:
            mask_logits (N, 1 + num_multimask, size, size), the single mask first, and predicted IoU
            (N, 1 + num_multimask).
        """
        index = torch.arange(len(embedding), device=embedding.device)
        found = decode_prompts(self.sam, embedding, index, self._scale(points, size), labels)
        return _enlarge(found[0], size), found[1]

    @torch.no_grad()
    def decode_boxes(self, embedding: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Masks from boxes, one per embedding.

        Args:
            embedding: (N, D, grid, grid).
            boxes: (N, 4) boxes as (x0, y0, x1, y1) in pixels of the square image of side `size`.
            size: side in pixels of the image that the boxes and the masks refer to.

        Returns:
            mask_logits (N, 1 + num_multimask, size, size), the single mask first, and predicted IoU
            (N, 1 + num_multimask).
        """
        index = torch.arange(len(embedding), device=embedding.device)
        scaled = self._scale(boxes.reshape(-1, 2, 2), size).reshape(-1, 4)
        found = decode_prompts(self.sam, embedding, index, boxes=scaled)
        return _enlarge(found[0], size), found[1]

    def _scale(self, points: Tensor, size: int) -> Tensor:
        """Pixel centres of an image of side `size` in the model's own pixels."""
        return (points.float() + 0.5) * (self.img_size / size) - 0.5


def save_sam(sam: Sam, config: SamConfig, path: str | Path) -> None:
    """Writes a SAM with its sizes as safetensors.

    Args:
        sam: the model.
        config: its sizes.
        path: a `.safetensors` file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    save_file(state, path, metadata={_CONFIG_KEY: _config_json(config)})


def _local_file(checkpoint: str) -> Path:
    """The file of a path, an official name or a URL (downloaded once)."""
    url = SAM_URLS.get(checkpoint, checkpoint)
    if urlparse(url).scheme in ("http", "https"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        return path
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"teacher file {checkpoint} does not exist; give a .pth or .safetensors in segment-anything's format, "
            f"a URL, or one of {', '.join(SAM_URLS)}."
        )
    return path


def _read_state(path: Path) -> tuple[dict[str, Tensor], SamConfig]:
    """Weights and sizes of a checkpoint file."""
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
    """Loads all weights or says in one sentence what differs."""
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


def _enlarge(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
