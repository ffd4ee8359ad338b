"""Tensors as small pictures in HTML, with caption, colour bar and legend."""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokencutseg.evaluation.inference import upsample_nearest
from tokencutseg.plots.style import SEQUENTIAL, code_colours

SIDE = 256
"""Of a picture, in pixels."""
YELLOW, WHITE, BLUE, VERMILION = "#FFDD00", "#FFFFFF", "#0072B2", "#D55E00"
"""Outline of the chosen or predicted, and of the reference; missed lesion; skin taken for lesion."""


def picture(
    caption: str, pixels: Tensor, side: int = SIDE, scale: Sequence[float] = (), legend: Sequence[tuple[str, str]] = ()
) -> str:
    """A picture (3, h, w), in [0, 1] or uint8, `side` pixels wide; `scale` are the ends of its colour bar, `legend`
    colours and their names."""
    whole = pixels if pixels.dtype == torch.uint8 else (pixels.clamp(0, 1) * 255).round().byte()
    image, buffer = Image.fromarray(whole.permute(1, 2, 0).numpy()), io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    data, alt = base64.b64encode(buffer.getvalue()).decode(), escape(caption)
    below = "".join(f"<span style='color:{c};background:#777;margin:0 4px'>■</span>{name}" for c, name in legend)
    if scale:
        stops = ",".join(mpl.colors.to_hex(mpl.colormaps[SEQUENTIAL](i / 8)) for i in range(9))
        bar = f"<span style='flex:1;margin:3px 4px;height:10px;background:linear-gradient(to right,{stops})'></span>"
        below = f"<span style='display:flex'>{scale[0]:.3g}{bar}{scale[1]:.3g}</span>"
    style = f"margin:0;width:{side}px;max-width:100%;line-height:1.4;font-size:12px"
    sharp = "image-rendering:pixelated;" if side >= 2 * image.width else ""  # few pixels are shown as squares
    img = f'<img alt="{alt}" width="100%" style="{sharp}display:block" src="data:image/png;base64,{data}">'
    return f'<figure style="{style}"><figcaption>{alt}</figcaption>{img}{below}</figure>'


def rgb(colour: str) -> Tensor:
    """A colour as (3, 1, 1)."""
    return torch.tensor(mpl.colors.to_rgb(colour))[:, None, None]


def heat_map(values: Tensor) -> Tensor:
    """Values (H, W) in [0, 1] as colours (3, H, W)."""
    return torch.from_numpy(mpl.colormaps[SEQUENTIAL](values.numpy())[..., :3]).permute(2, 0, 1).float()


def token_map(tokens: Tensor, codebook_size: int, size: int) -> Tensor:
    """Tokens (H, W), one colour per code, as (3, S, S)."""
    colours = torch.tensor(code_colours(codebook_size).colors, dtype=torch.float32)
    return upsample_nearest(colours[tokens].permute(2, 0, 1), size)


def outlined(image: Tensor, mask: Tensor, colour: str = YELLOW) -> Tensor:
    """The image (3, S, S) with the inner border, one pixel wide, of a mask (S, S) or of tokens (H, W), bool."""
    mask = upsample_nearest(mask, image.shape[-1])
    outside = F.max_pool2d((~mask)[None].float(), 3, 1, 1)[0] > 0
    return torch.where(mask & outside, rgb(colour), image)
