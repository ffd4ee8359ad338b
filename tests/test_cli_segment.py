"""`tokencutseg segment`: what it writes, says and skips."""

import errno
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

import tokencutseg
from tokencutseg import cli_segment


class RedIsLesion:
    """A segmenter whose right answer is plain to see."""

    def predict(self, image):
        return image[..., 0] > 127

    def to(self, device):
        return self


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(tokencutseg, "load", lambda given, segments: RedIsLesion())
    return tmp_path / "run"


def image_with_lesion(path: Path, height=40, width=60) -> np.ndarray:
    """Save a black image with a red box and return the box as bool (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lesion = np.zeros((height, width), bool)
    lesion[10:30, 15:50] = True
    Image.fromarray(np.stack([lesion * 200, lesion * 0, lesion * 0], -1).astype(np.uint8)).save(path)
    return lesion


def test_segment_writes_masks_and_overlays(model, tmp_path, capsys):
    lesion = image_with_lesion(tmp_path / "a.png")
    assert run("segment", tmp_path / "a.png", "--model", model, "--out", tmp_path / "out") == 0
    mask = np.array(Image.open(tmp_path / "out" / "a_mask.png"))
    assert mask.dtype == np.uint8 and np.array_equal(mask, lesion * np.uint8(255))
    overlay, image = (np.array(Image.open(path)) for path in (tmp_path / "out" / "a_overlay.png", tmp_path / "a.png"))
    inside = np.zeros_like(lesion)
    inside[11:29, 16:49] = True
    assert np.array_equal((overlay != image).any(-1), lesion & ~inside), "the outline, one pixel wide, and nothing else"
    shown = capsys.readouterr()
    assert f"{tmp_path / 'a.png'} -> {tmp_path / 'out' / 'a_mask.png'}" in shown.out and not shown.err
    assert re.search(r"([\d.]+) %", shown.out)[1] == f"{100 * 20 * 35 / (40 * 60):.1f}"


def test_segment_of_a_turned_photograph_a_strip_and_bare_skin(model, tmp_path, capsys):
    """Both outputs lie as viewers show the photograph; an overlay is at most 1600 px, a mask as large as its image."""
    upright = image_with_lesion(tmp_path / "upright.png", 2000, 1500)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture = Image.open(tmp_path / "upright.png").transpose(Image.Transpose.ROTATE_90)
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    Image.new("RGB", (500, 100)).save(tmp_path / "strip.png")
    images = [tmp_path / name for name in ("turned.jpg", "strip.png")]
    assert run("segment", *images, "--model", model, "--out", tmp_path / "out") == 0
    mask = np.array(Image.open(tmp_path / "out" / "turned_mask.png")) > 0
    assert mask.shape == (2000, 1500) and (mask != upright).mean() < 1e-4, "but for what JPEG blurs"
    assert Image.open(tmp_path / "out" / "turned_overlay.png").size == (1200, 1600)
    shown = capsys.readouterr()
    assert "strip_mask.png (no lesion found)" in shown.out and "500×100" in shown.err and "turned.jpg" not in shown.err


def test_segment_of_a_file_with_several_pictures(model, tmp_path, capsys):
    lesion, file = image_with_lesion(tmp_path / "a.png"), tmp_path / "a.tif"
    pictures = [Image.open(tmp_path / "a.png"), Image.new("RGB", (60, 40)), Image.new("RGB", (60, 40))]
    pictures[0].save(file, save_all=True, append_images=pictures[1:])
    assert run("segment", file, "--model", model, "--out", tmp_path / "out") == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "a_mask.png")) > 0, lesion)
    assert "a.tif holds 3 pictures" in capsys.readouterr().err


def test_segment_with_the_included_model(tmp_path):
    y, x = np.mgrid[:90, :120]
    skin = np.full((90, 120, 3), (222, 176, 155), np.uint8)
    lesion = ((y - 45) / 22) ** 2 + ((x - 60) / 30) ** 2 < 1
    skin[lesion] = (98, 58, 44)
    Image.fromarray(skin).resize((480, 360)).save(tmp_path / "a.png")
    assert run("segment", tmp_path / "a.png", "--out", tmp_path / "out") == 0
    mask = np.array(Image.open(tmp_path / "out" / "a_mask.png").resize((120, 90))) > 0
    assert (mask & lesion).sum() / (mask | lesion).sum() > 0.7, "a dark ellipse on light skin is an easy lesion"


def test_segment_takes_folders_and_patterns_each_image_once(model, tmp_path, monkeypatch, capsys):
    """Under names that don't depend on the order; and in a folder whatever it takes by name."""
    monkeypatch.chdir(tmp_path)
    for name in ("one/x.png", "two/x.png", "two/X.bmp", "two/z.tif", "z.bmp", "two/rare.ppm", "two/y_superpixels.png"):
        image_with_lesion(Path(name))
    Path("two/notes.txt").write_text("no image")
    Path("two/more").mkdir()
    expected = {"one_x.png", "two_x.png", "X.bmp", "z.tif", "z.bmp", "rare"}
    for images in (("one/x.png", "two", "*/x.png", "z.bmp"), ("z.bmp", "two", "*/x.png")):
        assert run("segment", *images, "--model", model, "--out", "out") == 0
        assert {path.name.removesuffix("_mask.png") for path in Path("out").glob("*_mask.png")} == expected
        said = capsys.readouterr().err
        assert "skipped in two, as no images: notes.txt, y_superpixels.png" in said and "as folders: more" in said
    before = sorted(Path("out").iterdir())
    assert run("segment", "out/*", "z.bmp", "--model", model, "--out", "out") == 0
    assert "written by earlier calls: X.bmp_mask.png" in capsys.readouterr().err
    assert set(Path("out").iterdir()) == {*before, Path("out/z_mask.png"), Path("out/z_overlay.png")}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.png", "a/X.PNG"], ["1_x.png", "2_X.PNG"]),
        (["x.tif.png", "x.tif", "x.bmp"], ["x.tif", "2_x.tif", "x.bmp"]),
        (["a/b/1.png", "a/c/1.png", "a/2.png"], ["b_1.png", "c_1.png", "2"]),
    ],
)
def test_names_of_masks_are_each_its_own(files, names):
    found = cli_segment._names([Path(file) for file in files])
    assert len({name.lower() for name in found}) == len(files)
    assert found == names


def test_segment_names_each_bad_image_and_writes_the_others(model, tmp_path, capsys):
    image_with_lesion(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)  # of a picture beyond Pillow's limit
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "in" / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + b"\0" * 4)
    (tmp_path / "empty").mkdir()
    images = [tmp_path / name for name in ("in", "gone.jpg", "empty", "*.tif")]
    assert run("segment", *images, "--model", model, "--out", tmp_path / "out") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5 and all(line.startswith("error: ") for line in errors)
    for name in ("bad.png", "huge.png", "gone.jpg", "empty", "*.tif"):
        assert sum(name in line for line in errors) == 1
    assert (tmp_path / "out" / "good_mask.png").exists()


@pytest.mark.parametrize("out", ["in", "masks"])
def test_segment_replaces_its_own_files_and_no_others(model, tmp_path, capsys, out):
    """Beside the images, too, where its own masks are not taken for images by the next call."""
    image_with_lesion(tmp_path / "in" / "a.png")
    command = ["segment", tmp_path / "in", "--model", model, "--out", tmp_path / out]
    assert run(*command) == 0
    before = [path.name for path in sorted((tmp_path / out).iterdir())]
    assert run(*command) == 0 and [path.name for path in sorted((tmp_path / out).iterdir())] == before
    mask = tmp_path / out / "a_mask.png"
    mask.write_text("an expert drew this")
    assert run("segment", tmp_path / "in" / "a.png", *command[2:]) == 2
    assert f"{mask} is there already and not from an earlier call" in capsys.readouterr().err
    assert mask.read_text() == "an expert drew this"


def test_segment_goes_on_after_a_path_that_cannot_be_read(model, tmp_path, monkeypatch, capsys):
    """Root may read everything, so the system's refusal is acted."""

    def refuse(path, real=Path.iterdir):
        if path.name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    (tmp_path / "locked").mkdir()
    image_with_lesion(tmp_path / "good.png")
    bad = [tmp_path / name for name in ("locked", "x" * 300, f"{'y' * 300}/a.png")]
    assert run("segment", *bad, tmp_path / "good.png", "--model", model, "--out", tmp_path / "out") == 1
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"error: {path} ") for path, line in zip(bad, errors, strict=True))
    assert (tmp_path / "out" / "good_mask.png").exists()


def test_segment_of_names_as_long_as_names_can_be(model, tmp_path, capsys):
    """An image is skipped, and said so, only where its mask or overlay would have a name too long."""
    stems = ["x" * 243, "y" * 244, "z" * 251, "a"]
    for stem in stems:
        image_with_lesion(tmp_path / "in" / f"{stem}.png")
    for _ in range(2):  # the second time into a folder that is there
        assert run("segment", tmp_path / "in", "--model", model, "--out", tmp_path / "out") == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 2 and all(f"{stem}.png" in line for stem, line in zip(stems[1:3], errors, strict=True))
        written = {path.name for path in (tmp_path / "out").iterdir()}
        assert written == {f"{stem}_{kind}.png" for stem in (stems[0], "a") for kind in ("mask", "overlay")}
