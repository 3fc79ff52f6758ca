"""The frozen encoders that have a short name here: pure data, so that listing them needs neither torch nor timm.

A short name stands for the training-free chain on that encoder. Numbers and licences are those of timm 1.0.31; the
encoder's page on the Hub has the terms in full, and the checksum of its file, which timm does not record.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

HUB = "https://huggingface.co"
WEIGHTS = "model.safetensors"  # what an encoder's file is called on the Hub
# Smaller inputs than this leave too few positions to draw a mask on: 28 x 28 with patches of 16 pixels.
LEAST_SIDE = 448
APACHE, DINOV3, NVIDIA = "apache-2.0", "dinov3-license", "nvidia-open-model-license"
NONCOMMERCIAL = "fair-noncommercial-research-license"


@dataclass(frozen=True)
class Encoder:
    """One frozen Vision Transformer.

    Args:
        name: the short name.
        repository: on the Hub; its name is timm's, with the tag of the weights.
        licence: of the weights, as timm records it.
        parameters: without a classifier.
        img_size: side in pixels of the square that it is used at.
    """

    name: str
    repository: str
    licence: str
    parameters: int
    img_size: int

    @property
    def timm(self) -> str:
        """Timm's name, with the tag of the weights."""
        return self.repository.partition("/")[2]

    @property
    def megabytes(self) -> int:
        """Size of the weights' file, which holds float32."""
        return round(self.parameters * 4 / 1e6)

    @property
    def authors_file(self) -> str | None:
        """What its authors call the file of the weights, by which torch.hub keeps it; None where that is not known."""
        family, size, *registers = self.name.split("-")
        return f"dinov2_vit{size}{'_reg4' * bool(registers)}_pretrain.pth" if family == "dinov2" else None

    @property
    def may_be_chosen(self) -> bool:
        """Whether `--model auto` may take it: not too slow without a GPU, and its licence allows use at work."""
        return self.parameters < 500e6 and self.licence != NONCOMMERCIAL


# The columns are the fields of `Encoder`. Best first, since "auto" takes the first whose weights are there: families in
# the order in which training-free segmentation is published to fare on them (DINOv3, PE-Spatial, DINOv2), then those
# of which nothing is known here; in each the largest first.
_TABLE = (
    ("dinov3-7b16", "timm/vit_7b_patch16_dinov3.lvd1689m", DINOV3, 6_716_030_976, 512),
    ("dinov3-h16plus", "timm/vit_huge_plus_patch16_dinov3.lvd1689m", DINOV3, 840_509_440, 512),
    ("dinov3-l16", "timm/vit_large_patch16_dinov3.lvd1689m", DINOV3, 303_079_424, 512),
    ("dinov3-b16", "timm/vit_base_patch16_dinov3.lvd1689m", DINOV3, 85_641_216, 512),
    ("dinov3-s16plus", "timm/vit_small_plus_patch16_dinov3.lvd1689m", DINOV3, 28_683_264, 512),
    ("dinov3-s16", "timm/vit_small_patch16_dinov3.lvd1689m", DINOV3, 21_586_944, 512),
    ("pe-spatial-g14", "timm/vit_pe_spatial_gigantic_patch14_448.fb", APACHE, 1_851_887_104, 448),
    ("pe-spatial-l14", "timm/vit_pe_spatial_large_patch14_448.fb", APACHE, 303_964_160, 448),
    ("pe-spatial-b16", "timm/vit_pe_spatial_base_patch16_512.fb", APACHE, 86_433_792, 512),
    ("pe-spatial-s16", "timm/vit_pe_spatial_small_patch16_512.fb", APACHE, 21_983_232, 512),
    ("dinov2-g14-reg", "timm/vit_giant_patch14_reg4_dinov2.lvd142m", APACHE, 1_136_483_840, 518),
    ("dinov2-l14-reg", "timm/vit_large_patch14_reg4_dinov2.lvd142m", APACHE, 304_370_688, 518),
    ("dinov2-b14-reg", "timm/vit_base_patch14_reg4_dinov2.lvd142m", APACHE, 86_582_016, 518),
    ("dinov2-s14-reg", "timm/vit_small_patch14_reg4_dinov2.lvd142m", APACHE, 22_057_344, 518),
    ("dinov2-g14", "timm/vit_giant_patch14_dinov2.lvd142m", APACHE, 1_136_479_232, 518),
    ("dinov2-l14", "timm/vit_large_patch14_dinov2.lvd142m", APACHE, 304_367_616, 518),
    ("dinov2-b14", "timm/vit_base_patch14_dinov2.lvd142m", APACHE, 86_579_712, 518),
    ("dinov2-s14", "timm/vit_small_patch14_dinov2.lvd142m", APACHE, 22_056_192, 518),
    ("c-radiov4-h16", "timm/vit_huge_patch16_radio_v4.c_radio", NVIDIA, 631_985_920, 512),
    ("c-radiov4-so400m16", "timm/vit_so400m_patch16_radio_v4.c_radio", NVIDIA, 413_543_664, 512),
    ("c-radiov3-g16", "timm/vit_giant_patch16_radio_v3.c_radio", NVIDIA, 1_136_027_136, 512),
    ("c-radiov3-h16", "timm/vit_huge_patch16_radio_v3.c_radio", NVIDIA, 631_983_360, 512),
    ("c-radiov3-l16", "timm/vit_large_patch16_radio_v3.c_radio", NVIDIA, 304_202_752, 512),
    ("c-radiov3-b16", "timm/vit_base_patch16_radio_v3.c_radio", NVIDIA, 86_456_064, 512),
    ("tipsv2-g14", "timm/vit_giant_patch14_reg1_tipsv2.webli", APACHE, 1_135_949_312, 448),
    ("tipsv2-so400m14", "timm/vit_so400m_patch14_reg1_tipsv2.webli", APACHE, 413_391_600, 448),
    ("tipsv2-l14", "timm/vit_large_patch14_reg1_tipsv2.webli", APACHE, 304_014_336, 448),
    ("tipsv2-b14", "timm/vit_base_patch14_reg1_tipsv2.webli", APACHE, 86_314_752, 448),
    ("lingbot-g16", "belfner/vit_giant_patch16_lingbot.robbyant", APACHE, 1_134_473_216, 512),
    ("lingbot-l16", "belfner/vit_large_patch16_lingbot.robbyant", APACHE, 303_128_576, 512),
    ("lingbot-b16", "belfner/vit_base_patch16_lingbot.robbyant", APACHE, 85_659_648, 512),
    ("lingbot-s16", "belfner/vit_small_patch16_lingbot.robbyant", APACHE, 21_596_160, 512),
    ("eupe-b16", "timm/vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", NONCOMMERCIAL, 85_659_648, 512),
    ("eupe-s16", "timm/vit_small_patch16_dinov3_qkvb.eupe_lvd1689m", NONCOMMERCIAL, 21_596_160, 512),
    ("eupe-t16", "timm/vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", NONCOMMERCIAL, 5_489_664, 512),
    # So small, and so far from the others in what it was taught, that everything above is likely to be better.
    ("pe-spatial-t16", "timm/vit_pe_spatial_tiny_patch16_512.fb", APACHE, 5_683_200, 512),
)
CATALOG: dict[str, Encoder] = {row[0]: Encoder(*row) for row in _TABLE}


def entry_of(name: str) -> Encoder | None:
    """The entry of a short name, of timm's name with or without its tag, or of a repository on the Hub."""
    for entry in CATALOG.values():
        if name in (entry.name, entry.repository, entry.timm, entry.timm.partition(".")[0]):
            return entry
    return None


def likely_meant(name: str) -> list[str]:
    """Short names that look like a mistyped one, the likeliest first; none where nothing does."""
    return get_close_matches(name.lower(), CATALOG, n=3, cutoff=0.6)
