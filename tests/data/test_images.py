"""Images and masks of every format, against arrays that the tests write themselves."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from tokencutseg.data.images import DataError, lesion_threshold, read_header, read_image, read_mask
from tokencutseg.models.predict import image_array


def rgb(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height, width):
    """A picture that JPEG keeps almost exactly."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], -1).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_a_lossless_rgb_file_gives_its_pixels_back(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_image(path), pixels)
    assert read_header(path) == (*pixels.shape[:2], 1)


def palette_image(indices, palette):
    image = Image.fromarray(indices, mode="P")
    image.putpalette(palette.tobytes())
    return image


def inked(ink):
    return Image.fromarray(np.dstack([ink, np.zeros_like(ink[..., :1])]), mode="CMYK")


GREY, COLOURS, PALETTE = rgb()[..., 0], rgb(), rgb(1, 256)[0]
MODES = {
    "grey.png": (Image.fromarray(GREY), {}, np.stack([GREY] * 3, -1)),
    "palette.png": (palette_image(GREY, PALETTE), {"transparency": bytes(range(256))}, PALETTE[GREY]),
    "alpha.png": (Image.fromarray(np.dstack([COLOURS, rgb(seed=1)[..., :1]])), {}, COLOURS),
    "cmyk.tif": (inked(COLOURS), {}, 255 - COLOURS),  # no black ink: the complement
    "deep.png": (Image.fromarray(GREY.astype(np.uint16) * 257), {}, np.stack([GREY] * 3, -1)),  # 257·255 = 65535
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(tmp_path, name):
    image, options, expected = MODES[name]
    image.save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    with Image.open(tmp_path / name) as opened:
        np.testing.assert_array_equal(image_array(opened), expected)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(("kind", "value"), [(np.float32, 1), (np.int32, 65536), (np.int32, -1)])
def test_pixels_of_unknown_range_are_refused(tmp_path, read, kind, value):
    Image.fromarray(np.diag(np.full(4, value, kind))).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds .* 8 bits"):
        read(tmp_path / "a.tif")


def test_integers_of_16_bits_in_a_file_of_32(tmp_path):
    Image.fromarray(np.full((4, 4), 65535, np.int32)).save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif") == 255).all() and read_mask(tmp_path / "a.tif").all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_told_otherwise(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(smooth(40, 64))
    stored.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as opened:
        upright = ImageOps.exif_transpose(opened)
        np.testing.assert_array_equal(image_array(opened), upright)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), upright)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", upright=False), stored)
    assert read_header(tmp_path / "photo.png") == (40, 64, orientation)


def test_resizing_is_bilinear_and_does_not_keep_the_aspect(tmp_path):
    pixels = rgb(50, 80)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 24), expected)


def test_a_large_jpeg_read_at_a_lower_scale_looks_the_same(tmp_path):
    Image.fromarray(smooth(600, 900)).save(tmp_path / "large.jpg", quality=95)
    whole = Image.fromarray(read_image(tmp_path / "large.jpg")).resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(whole).astype(int) - read_image(tmp_path / "large.jpg", 32))
    assert difference.max() <= 3


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(rgb(100, 100)).save(buffer, kind)
    return buffer.getvalue()


SOUND = {kind: encoded(kind) for kind in ("JPEG", "PNG", "TIFF")}
DAMAGED = {f"cut.{kind.lower()}": content[:2000] for kind, content in SOUND.items()}
DAMAGED |= {"empty.jpg": b"", "page.jpg": b"<html>404</html>", "gone.jpg": None}
DAMAGED["flipped.png"] = SOUND["PNG"][:3000] + b"\x00\xff" * 50 + SOUND["PNG"][3100:]


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, read, name):
    if DAMAGED[name] is not None:
        (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(DataError, match=rf"{name} (cannot be read|is a web page|does not exist)") as caught:
        read(tmp_path / name)
    assert "delete" not in str(caught.value)


OTHER_KINDS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 500,
    "DICOM": b"\0" * 128 + b"DICM" + b"\0" * 100,
    "PDF": b"%PDF-1.7 ...",
    "zip": b"PK\3\4 ...",
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_sound_file_of_another_kind_is_called_what_it_is(tmp_path, kind):
    (tmp_path / "photo.jpg").write_bytes(OTHER_KINDS[kind])
    with pytest.raises(DataError, match=rf"photo.jpg is a {kind}.*save it as JPEG or PNG"):
        read_image(tmp_path / "photo.jpg")


def test_too_many_pixels_are_the_reason_given(tmp_path, monkeypatch):
    Image.new("L", (300, 200)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)
    with pytest.raises(DataError, match="more pixels than the limit"):
        read_image(tmp_path / "huge.png")


def blurred(height=40, width=60):
    """A grey mask: dark and bright with a soft border, all 256 values."""
    x = np.mgrid[:height, :width][1]
    return np.clip((x - 20) * 16 + np.arange(height)[:, None] % 16, 0, 255).astype(np.uint8)


SPOT, SOFT = rgb()[..., 0] > 200, blurred()
SPOT8, RED, NOTHING = SPOT.astype(np.uint8), SPOT[..., None] * np.array([255, 0, 0], np.uint8), np.zeros((9, 7), bool)
MASKS = {
    "labels": (SPOT8, SPOT),
    "labels of 16 bits": (SPOT.astype(np.uint16), SPOT),
    "grey": (SOFT, SOFT > 127),
    "grey in 16 bits": (SOFT.astype(np.uint16), SOFT > 127),
    "grey of 16 bits": (SOFT.astype(np.uint16) * 257, SOFT > 127),
    "transparency on black": (np.dstack([0 * RED, SPOT8 * 255]), SPOT),
    "transparency on white": (np.dstack([0 * RED + 255, SPOT8 * 255]), SPOT),
    "one mask twice": (np.dstack([SPOT8 * 255] * 4), SPOT),
    "red": (RED, SPOT),  # whose luminance is only 76
    "one bit, empty": (NOTHING, NOTHING),
    "one bit, full": (~NOTHING, ~NOTHING),
    "empty": (NOTHING.astype(np.uint8), NOTHING),
    "full": (~NOTHING * np.uint8(255), ~NOTHING),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_kind_of_mask(tmp_path, name):
    stored, expected = MASKS[name]
    Image.fromarray(stored).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)


def test_masks_of_a_palette_and_as_jpeg(tmp_path):
    Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), SPOT)
    y, x = np.mgrid[:90, :120]
    lesion = (y - 45) ** 2 + (x - 60) ** 2 < 900
    Image.fromarray(lesion.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=60)
    assert (read_mask(tmp_path / "mask.jpg") != lesion).mean() < 0.01


def test_two_masks_in_one_file_are_refused(tmp_path):
    Image.fromarray(np.dstack([SPOT8 * 255] * 3 + [rgb(seed=1)[..., 0]])).save(tmp_path / "two.png")
    with pytest.raises(DataError, match="transparency"):
        read_mask(tmp_path / "two.png")
    Image.fromarray(np.where(SPOT[..., None], RED, np.array([0, 0, 255], np.uint8))).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="equally bright"):
        read_mask(tmp_path / "a.png")


def counts(*masks):
    return np.stack([np.bincount(np.asarray(mask, np.uint8).ravel(), minlength=256) for mask in masks])


LESION = np.pad(np.ones((20, 20), int), 10)


THRESHOLDS = [
    ([LESION, 0 * LESION, LESION * 255], 0),
    ([LESION, LESION * 2], 0),
    ([LESION * 100], 0),
    ([LESION + 1, LESION * 0 + 1], 1),
    ([np.where(LESION, 255, 3), blurred()], 127),
    ([LESION * 255, LESION * (254 + np.eye(40, dtype=int))], 127),
]


@pytest.mark.parametrize(("masks", "above"), THRESHOLDS)
def test_the_threshold_of_a_split(masks, above):
    assert lesion_threshold(counts(*masks), "a")[0] == above


AMBIGUOUS = [
    [np.where(np.pad(np.zeros((18, 18), bool), 11, constant_values=True), LESION * 255, LESION)],  # border 255
    [LESION + LESION.T * 2 + np.eye(40, dtype=int)],  # three labels
    [LESION, blurred()],  # labels in one file, grey in the other
    [LESION * np.where(np.arange(40) < 20, 128, 255)],
    [rgb()[..., 0] // 2 + 60],  # a photograph
]


@pytest.mark.parametrize("masks", AMBIGUOUS)
def test_masks_that_can_be_read_in_two_ways_are_refused(masks):
    with pytest.raises(DataError):
        lesion_threshold(counts(*masks), "a")


def test_a_mask_is_resized_to_the_nearest_pixel(tmp_path):
    values = np.kron(np.random.default_rng(0).integers(0, 2, (8, 8)), np.ones((5, 3))).astype(bool)
    Image.fromarray(values).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 8), values[::5, ::3])
