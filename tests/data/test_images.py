"""EncoderOutput images and masks of every format, against arrays that the tests write themselves."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tokencutseg.data.images import DataError, read_header, read_image, read_mask
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


def test_grey_is_repeated_over_the_channels(tmp_path):
    grey = rgb()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, -1))


def test_a_palette_is_looked_up(tmp_path):
    palette = rgb(1, 256)[0]
    indices = rgb()[..., 0]
    image = Image.fromarray(indices, mode="P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), palette[indices])


def test_alpha_is_dropped(tmp_path):
    pixels = np.dstack([rgb(), rgb(seed=1)[..., :1]])
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), pixels[..., :3])


def test_cmyk_is_converted_to_rgb(tmp_path):
    ink = rgb()
    Image.fromarray(np.dstack([ink, np.zeros_like(ink[..., :1])]), mode="CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tif"), 255 - ink)  # no black ink: the complement


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    grey = rgb()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")  # 257·255 = 65535
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), np.stack([grey] * 3, -1))


def test_an_opened_image_is_read_as_its_file_is(tmp_path):
    grey = rgb()[..., 0]
    for name, image in (
        ("deep", Image.fromarray(grey.astype(np.uint16) * 257)),
        ("grey", Image.fromarray(grey)),
        ("palette", Image.fromarray(rgb()).quantize(16)),
    ):
        image.save(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as opened:
            np.testing.assert_array_equal(image_array(opened), read_image(tmp_path / f"{name}.png"))


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif holds floating-point"):
        read_image(tmp_path / "float.tif")


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90°"
    Image.fromarray(smooth(40, 64)).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 64, 3) and file_size(tmp_path / "turned.jpg") == (40, 64)


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


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jpg", encoded("JPEG")[:2000]),
        ("cut.png", encoded("PNG")[:2000]),
        ("cut.tif", encoded("TIFF")[:2000]),
        ("empty.jpg", b""),
        ("text.jpg", b"<html>404</html>"),
        ("flipped.png", encoded("PNG")[:3000] + b"\x00\xff" * 50 + encoded("PNG")[3100:]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_named(tmp_path, read, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read .* download it again"):
        read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")


def save_mask(path, values):
    Image.fromarray(np.asarray(values)).save(path)
    return read_mask(path)


def test_a_grey_mask_is_cut_above_127(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = save_mask(tmp_path / "mask.png", values)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, values > 127)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_of_zeros_and_ones_is_taken_as_labels(tmp_path, dtype):
    values = rgb()[..., 0] > 200
    np.testing.assert_array_equal(save_mask(tmp_path / "mask.png", values.astype(dtype)), values)


def test_eight_bits_in_a_wider_type_are_cut_at_the_same_brightness(tmp_path):
    values = rgb()[..., 0]
    np.testing.assert_array_equal(save_mask(tmp_path / "mask.png", values.astype(np.uint16)), values > 127)


def test_a_sixteen_bit_mask_is_cut_at_the_same_brightness(tmp_path):
    values = rgb()[..., 0]
    np.testing.assert_array_equal(save_mask(tmp_path / "mask.png", values.astype(np.uint16) * 257), values > 127)


@pytest.mark.parametrize("empty", [True, False])
def test_one_bit_and_empty_and_full_masks(tmp_path, empty):
    assert save_mask(tmp_path / "bits.png", np.full((9, 7), not empty)).mean() == (0 if empty else 1)
    assert save_mask(tmp_path / "grey.png", np.full((9, 7), 0 if empty else 255, np.uint8)).mean() == (not empty)


def test_a_mask_painted_in_colour_counts(tmp_path):
    lesion = rgb()[..., 0] > 128
    painted = np.zeros((*lesion.shape, 3), np.uint8)
    painted[lesion, 0] = 255  # red, whose luminance is only 76
    np.testing.assert_array_equal(save_mask(tmp_path / "red.png", painted), lesion)
    Image.fromarray(painted).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), lesion)


def test_a_mask_is_resized_to_the_nearest_pixel(tmp_path):
    values = np.kron(np.random.default_rng(0).integers(0, 2, (8, 8)), np.ones((5, 3))).astype(bool)
    save_mask(tmp_path / "mask.png", values)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 8), values[::5, ::3])
