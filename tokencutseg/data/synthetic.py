"""Synthetic dermoscopy: the data the project carries with it.

Skin is a stack of absorbers under a white lamp. Melanin and haemoglobin add absorbance, and the camera sees
``light * exp(-absorbance)`` (Beer-Lambert; the two-chromophore model of Tsumura et al., J. Opt. Soc. Am. A 16, 2169,
1999). A lesion is extra melanin inside an irregular border; hair, ink, bubbles and rulers lie on top; optics come last.

Everything is a formula over the unit square [-1, 1]², so one seed is the same picture at every size. Noise lattices
have a fixed number of cells and are drawn whole, also where they are too fine for the pixels to show. Each part draws
from a stream of its own, so changing one leaves the others as they were.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from PIL import Image
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array

from tokencutseg.data.images import DataError

# Absorbance per unit of pigment in red, green, blue: brown, red, the blue-grey of pigment deep in the dermis, violet.
MELANIN = np.array([0.34, 0.68, 0.90], np.float32)
BLOOD = np.array([0.10, 0.55, 0.45], np.float32)
DEEP_MELANIN = np.array([0.95, 0.85, 0.66], np.float32)
INK = np.array([1.10, 1.35, 0.45], np.float32)


@dataclass(frozen=True)
class Site:
    """A clinic: its patients, its dermatoscope and its habits. Ranges are (low, high); chances are per image."""

    code: int  # enters the seed, so that the sites share no picture
    light: tuple[float, float, float]  # colour of bare, unpigmented skin
    melanin: tuple[float, float]  # of the skin around the lesion
    blood: tuple[float, float]
    lesion_area: float  # median fraction of the image
    lesion_area_spread: float  # standard deviation of its logarithm
    lesion_melanin: tuple[float, float]  # contrast; log-uniform
    hairy: float  # chance of hair
    hairs: float  # mean count where there is hair
    ruler: float
    ink: float
    bubbles: float
    glare: float  # chance of specular highlights; a polarising filter removes them
    vignette: tuple[float, float]  # light lost at the corner
    field_stop: float  # chance of a round field of view with black corners
    blur: tuple[float, float]  # standard deviation, in hundredths of the image side
    noise: float  # sensor noise, standard deviation in [0, 1] units
    jpeg_quality: tuple[int, int] | None  # None: stored without loss


SITES = {
    "site_a": Site(
        code=1, light=(0.96, 0.86, 0.76), melanin=(0.04, 0.34), blood=(0.02, 0.22),
        lesion_area=0.16, lesion_area_spread=0.75, lesion_melanin=(0.18, 1.7),
        hairy=0.50, hairs=6, ruler=0.08, ink=0.18, bubbles=0.12, glare=0.05,
        vignette=(0.0, 0.40), field_stop=0.12, blur=(0.0, 0.35), noise=0.008, jpeg_quality=None,
    ),
    "site_b": Site(
        code=2, light=(0.92, 0.88, 0.94), melanin=(0.02, 0.22), blood=(0.10, 0.40),
        lesion_area=0.12, lesion_area_spread=0.95, lesion_melanin=(0.18, 1.6),
        hairy=0.70, hairs=9, ruler=0.25, ink=0.20, bubbles=0.20, glare=0.20,
        vignette=(0.10, 0.42), field_stop=0.18, blur=(0.25, 0.80), noise=0.015, jpeg_quality=(55, 85),
    ),
}  # fmt: skip


def generate(site: str, n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` lesions of a site: RGB images uint8 (n, 3, size, size) and masks uint8 {0, 1} (n, size, size).

    Image i is a function of (site, seed, i) and the size alone. A mask is never empty, counts satellites as lesion and
    ends where the round field of view ends. Raises DataError for an unknown site, a negative `n` or `seed`, and a size
    under 8 pixels.
    """
    if site not in SITES:
        raise DataError(f"unknown synthetic site {site!r}. Known: {', '.join(SITES)}")
    if n < 0 or seed < 0 or size < 8:
        raise DataError(f"synthetic lesions need n >= 0, seed >= 0 and size >= 8, not n={n}, seed={seed}, size={size}")
    images, masks = np.empty((n, 3, size, size), np.uint8), np.empty((n, size, size), np.uint8)
    for index in range(n):
        images[index], masks[index] = _render(SITES[site], size, np.random.default_rng([SITES[site].code, seed, index]))
    return images, masks


def _render(site: Site, size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image (3, size, size) and its mask (size, size), from the skin up to the camera."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(axis, axis)
    streams = iter(rng.spawn(10))
    border, radius = _border(site, x, y, next(streams))
    absorbance = _skin(site, size, next(streams)) + _lesion(site, border, radius, next(streams))
    image = np.array(site.light, np.float32)[:, None, None] * np.exp(-absorbance)
    overlays = (
        (_ink, site.ink),
        (_bubbles, site.bubbles),
        (_glare, site.glare),
        (_hair, site.hairy),
        (_ruler, site.ruler),
    )
    for overlay, chance in overlays:
        if (stream := next(streams)).random() < chance:
            image = overlay(site, image, x, y, stream)
    image, field = _vignette(site, image, x, y, next(streams))
    mask = (border < 0) & field
    if not mask.any():  # a lesion smaller than a pixel
        mask[np.unravel_index(border.argmin(), border.shape)] = True
    return _camera(site, image, next(streams)), mask.astype(np.uint8)


@lru_cache(maxsize=128)
def _spline_weights(size: int, cells: int) -> csr_array:
    """Uniform cubic B-spline weights (size, cells + 3): from lattice values to values at pixel centres.

    Sparse, because BLAS would sum in an order that depends on the machine and start threads for tiny products.
    """
    position, knots = (np.arange(size) + 0.5) / size * cells, np.arange(-3, cells + 4)
    return csr_array(BSpline.design_matrix(position, knots, 3), dtype=np.float32)


def _noise(rng: Generator, size: int, cells: int, octaves: int = 1) -> np.ndarray:
    """Smooth random field (size, size) of about unit deviation, `cells` features across, halving per octave.

    Octaves finer than two pixels a cell are drawn and left out, so that the coarse ones are the same at every size.
    """
    field = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        count = cells * 2**octave
        lattice = rng.standard_normal((count + 3, count + 3), dtype=np.float32)
        if 2 * count <= size:
            weights = _spline_weights(size, count)
            field += (weights @ (weights @ lattice).T).T * (2.1 / 2**octave)  # splines leave 1 / 2.1 of it
    return field


def _smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _stroke(distance: np.ndarray, width: float) -> np.ndarray:
    """How much of each pixel a line of this width covers; a line thinner than a pixel fades instead of breaking."""
    pixel = 2 / distance.shape[-1]
    return np.clip((width + pixel) / 2 - np.abs(distance), 0, min(width, pixel)) / pixel


def _curve(x: np.ndarray, y: np.ndarray, rng: Generator, bend: float, half_length: float) -> tuple[np.ndarray, ...]:
    """A random cubic through the image: (distance to it, position along it in [-1, 1] where the curve lasts)."""
    angle, middle = rng.uniform(0, 2 * np.pi), rng.uniform(-0.9, 0.9, 2)
    along = (x - middle[0]) * np.cos(angle) + (y - middle[1]) * np.sin(angle)
    across = (y - middle[1]) * np.cos(angle) - (x - middle[0]) * np.sin(angle)
    second, third = rng.normal(0, bend, 2)
    slope = 2 * second * along + 3 * third * along**2
    return (across - (second + third * along) * along**2) / np.sqrt(1 + slope**2), along / half_length


def _paint(image: np.ndarray, colour: ArrayLike, cover: np.ndarray) -> np.ndarray:
    return image + (np.asarray(colour, np.float32)[:, None, None] - image) * cover


def _skin(site: Site, size: int, rng: Generator) -> np.ndarray:
    """Absorbance (3, size, size) of the skin around the lesion: tone, flush, mottling and fine furrows."""
    melanin = rng.uniform(*site.melanin) + 0.6 * rng.random() ** 8  # a few darker skins
    blood = rng.uniform(*site.blood)
    brown = melanin * (1 + 0.10 * _noise(rng, size, 2, 3))
    red = blood * np.exp(0.28 * _noise(rng, size, 5, 4))
    furrows = np.abs(_noise(rng, size, 28, 2))
    brown += rng.uniform(0.01, 0.05) * (1 - furrows) + rng.uniform(0, 0.03) * _noise(rng, size, 40, 2)
    mottling = _smoothstep(_noise(rng, size, 15, 2), 0.6, 3.0)  # freckles and sun damage
    brown += mottling * (rng.uniform(0.15, 0.45) if rng.random() < 0.25 else 0.02)
    shade = -np.log(rng.uniform(0.78, 1.06))  # exposure
    return brown * MELANIN[:, None, None] + red * BLOOD[:, None, None] + shade


def _border(site: Site, x: np.ndarray, y: np.ndarray, rng: Generator) -> tuple[np.ndarray, float]:
    """(signed distance to the lesion's border, negative inside; the lesion's radius).

    A star-shaped outline whose radius wavers with a random Fourier series, on a fractally warped plane, joined by
    satellites in some images.
    """
    area = np.clip(site.lesion_area * np.exp(site.lesion_area_spread * rng.standard_normal()), 0.014, 0.62)
    radius = 2 * np.sqrt(area / np.pi)
    centre = rng.uniform(-1, 1, 2) * min(0.32, max(0.04, 0.75 - radius))
    stretch, tilt = np.exp(rng.uniform(0, 0.28)), rng.uniform(0, np.pi)
    roughness, size = rng.uniform(0.04, 0.18), len(x)
    warp = rng.uniform(0.03, 0.09) * (0.15 + radius)
    px = x - centre[0] + warp * _noise(rng, size, 5, 4)
    py = y - centre[1] + warp * _noise(rng, size, 5, 4)
    along = (px * np.cos(tilt) + py * np.sin(tilt)) / stretch
    across = (py * np.cos(tilt) - px * np.sin(tilt)) * stretch

    order = np.arange(2, 20)[:, None]
    amplitude = roughness * rng.standard_normal(order.shape) * (2 / order) ** 1.5
    angles = np.linspace(-np.pi, np.pi, 721)
    outline = (amplitude * np.cos(order * angles + rng.uniform(0, 2 * np.pi, order.shape))).sum(0)
    outline = np.exp(outline) / np.sqrt(np.mean(np.exp(2 * outline)))  # keeps the area that was drawn
    border = np.hypot(along, across) - radius * np.interp(np.arctan2(across, along), angles, outline)

    count = rng.integers(1, 4) if rng.random() < 0.15 else 0
    for bearing in rng.uniform(0, 2 * np.pi, count):
        reach, spot = radius * rng.uniform(1.2, 1.6), np.clip(radius * rng.uniform(0.1, 0.22), 0.035, 0.14)
        satellite = np.hypot(px - reach * np.cos(bearing), py - reach * np.sin(bearing)) - spot
        border = np.minimum(border, satellite)
    return border.astype(np.float32), float(radius)


def _network(rng: Generator, size: int) -> np.ndarray:
    """Pigment network (size, size): a dark irregular mesh, the zero lines of two random fields, around pale holes."""
    cells = 30
    mesh = np.minimum(np.abs(_noise(rng, size, cells)), np.abs(_noise(rng, size, cells)))
    return (np.exp(-((mesh / 0.42) ** 2)) - 0.62) * (size >= 2 * cells)  # else too fine for the pixels


def _lesion(site: Site, border: np.ndarray, radius: float, rng: Generator) -> np.ndarray:
    """Absorbance (3, H, W) the lesion adds: brown variegation, network or globules, blotch, regression, veil, flush."""
    size = len(border)
    softness = radius * np.exp(rng.uniform(np.log(0.02), np.log(0.11)))
    inside = 1 / (1 + np.exp(np.clip(border / softness, -30, 30)))
    depth = np.clip(-border / radius, 0, 1)
    strength = np.exp(rng.uniform(*np.log(site.lesion_melanin)))

    brown = np.exp(rng.uniform(0.1, 0.45) * _noise(rng, size, 5, 4) + rng.uniform(-0.5, 0.7) * (depth - 0.3))
    texture = rng.choice(3, p=[0.45, 0.25, 0.30])  # reticular, globular, homogeneous
    network = _network(rng, size) * np.clip(0.8 + 0.5 * _noise(rng, size, 3), 0, 1.4)
    globules = _smoothstep(_noise(rng, size, 30), 0.2, 1.6) - 0.25
    brown += (texture == 0) * rng.uniform(0.25, 0.6) * network + (texture == 1) * rng.uniform(0.3, 0.8) * globules
    brown += rng.uniform(0.05, 0.22) * _noise(rng, size, 24, 2)
    patches = _noise(rng, size, 3, 3)
    blotch = _smoothstep(patches, 0.5, 1.3) * rng.uniform(0.3, 1.2) * (rng.random() < 0.4)
    regression = _smoothstep(-patches, 0.7, 1.5) * rng.uniform(0.3, 0.7) * (rng.random() < 0.25)
    veil = _smoothstep(_noise(rng, size, 3, 2), 0.3, 1.4) * rng.uniform(0.2, 0.7) * (rng.random() < 0.2) * strength
    flush = rng.uniform(0.0, 0.15) * np.exp(0.4 * _noise(rng, size, 6, 3))

    if rng.random() < 0.08:  # amelanotic, pink: blood instead of pigment
        strength, flush = 0.3 * strength, flush + rng.uniform(0.5, 0.9)
    brown = strength * np.clip(brown + blotch, 0.25, None) * (1 - regression)
    halo = rng.uniform(0, 0.18) * np.exp(-np.clip(border, 0, None) / (0.15 * radius)) * (1 - inside)
    coat = inside * _smoothstep(depth, 0.05, 0.3) * veil
    pigment = (inside * brown) * MELANIN[:, None, None] + (inside * flush + halo) * BLOOD[:, None, None]
    return pigment + coat * DEEP_MELANIN[:, None, None]


def _ink(site: Site, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Violet surgical marker: one or two broad, patchy strokes near the rim."""
    for _ in range(rng.integers(1, 3)):
        bearing, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.10)
        cx, cy = 1.05 * np.cos(bearing), 1.05 * np.sin(bearing)
        distance, along = _curve(x - cx, y - cy, rng, 0.3, rng.uniform(0.25, 0.5))
        cover = _smoothstep(-np.abs(distance + 0.01 * _noise(rng, len(x), 12, 2)), -width, -0.6 * width)
        cover *= (np.abs(along) < 1) * np.clip(0.75 + 0.25 * _noise(rng, len(x), 18, 2), 0.2, 1.2)
        image = image * np.exp(-rng.uniform(0.5, 1.0) * cover * INK[:, None, None])
    return image


def _bubbles(site: Site, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Air in the immersion fluid: thin dark rings with a bright crescent on the lamp's side."""
    for _ in range(rng.integers(2, 10)):
        cx, cy = rng.uniform(-1, 1, 2)
        radius = 0.025 + 0.12 * rng.random() ** 3
        distance = np.hypot(x - cx, y - cy)
        lit = np.clip(((x - cx) + (y - cy)) / (-1.4 * np.maximum(distance, 1e-3)), 0, 1) ** 2
        image = image * (1 - 0.35 * _stroke(distance - radius, 0.014)) * (1 + 0.04 * (distance < radius))
        image = _paint(image, (1, 1, 1), 0.8 * lit * _stroke(distance - 0.85 * radius, 0.016))
    return image


def _glare(site: Site, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Specular highlights: small white flecks in clusters, where skin ridges mirror the lamp."""
    flecks = _smoothstep(_noise(rng, len(x), 44) + 0.7 * _noise(rng, len(x), 3), 2.3, 3.4)
    return _paint(image, (1, 1, 1), 0.6 * flecks)


def _hair(site: Site, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Curved tapering hairs, mostly dark and of one colour per person, with a faint shadow beside each."""
    colour = np.array((0.16, 0.11, 0.09)) * rng.uniform(0.5, 1.8)
    if rng.random() < 0.12:
        colour = np.array((0.88, 0.80, 0.68))  # fair or white hair
    thickness = rng.uniform(0.004, 0.014)
    for _ in range(min(1 + rng.poisson(site.hairs * rng.uniform(0.4, 1.8)), 30)):
        distance, along = _curve(x, y, rng, 0.25, rng.uniform(0.3, 1.5))
        width = thickness * rng.uniform(0.6, 1.3)
        taper = np.clip(4 * (1 - np.abs(along)), 0, 1)
        image = image * (1 - 0.12 * taper * _stroke(distance - width, 2 * width))
        image = _paint(image, colour, 0.9 * taper * _stroke(distance, width))
    return image


def _ruler(site: Site, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> np.ndarray:
    """Millimetre ticks engraved along one edge, sometimes on a white strip."""
    angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.06)
    along, inward = x * np.sin(angle) + y * np.cos(angle), 1 - (x * np.cos(angle) - y * np.sin(angle))
    step, start = rng.uniform(0.09, 0.16), rng.uniform(0.02, 0.12)
    number = np.round(along / step)
    length = np.where(number % 5 == 0, 0.17, 0.09)
    if rng.random() < 0.3:
        image = _paint(image, (0.93, 0.93, 0.90), _smoothstep(-inward, -start - 0.21, -start - 0.19))
    ticks = _stroke(along - number * step, 0.016) * (inward > start) * (inward < start + length)
    return _paint(image, (0.08, 0.08, 0.09), 0.85 * ticks)


def _vignette(site: Site, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: Generator) -> tuple[np.ndarray, ...]:
    """(image with light falling off towards the rim and, for some, black corners; the field of view, bool (H, W))."""
    cx, cy = rng.normal(0, 0.06, 2)
    distance = np.hypot(x - cx, y - cy)
    image = image * (1 - rng.uniform(*site.vignette) * np.clip(distance / 1.41, 0, 1.2) ** 2.5)
    if rng.random() >= site.field_stop:
        return image, np.ones(x.shape, bool)
    # photographs are wider than high and get squashed into the square: the round stop becomes an ellipse
    rim = np.hypot((x - cx) * rng.uniform(1.0, 1.15), y - cy) - rng.uniform(0.98, 1.2)
    return _paint(image, (0.02, 0.02, 0.03), _smoothstep(rim, -0.04, 0.02)), rim < 0


def _camera(site: Site, image: np.ndarray, rng: Generator) -> np.ndarray:
    """Focus, white balance, sensor noise and file format: uint8 (3, H, W)."""
    image = image * rng.normal(1, 0.025, (3, 1, 1))
    sigma = rng.uniform(*site.blur) * image.shape[-1] / 100
    image = gaussian_filter(image.astype(np.float32), (0, sigma, sigma))
    quality = int(rng.integers(*site.jpeg_quality)) if site.jpeg_quality else None
    image = image + site.noise * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if quality is None:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)
