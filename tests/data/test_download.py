import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from tokencutseg.data import download
from tokencutseg.data.datasets import DATASETS
from tokencutseg.data.download import archives, fetch
from tokencutseg.data.folders import find_datasets
from tokencutseg.data.images import DataError

FIRST = "/2016/ISBI2016_ISIC_Part1_Training_Data.zip"


class Host:
    """A small web server: `files` by path, and how it misbehaves."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.supports_range = self.announces_length = True
        self.close_after: int | None = None  # bytes of a body after which the connection is closed …
        self.times = 10**9  # … as many times as this
        self.failures = 0  # answers of 503 before the first other one
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.answer(self)

            def log_message(self, *_):
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked, body = handler.headers.get("Range"), self.files.get(handler.path)
        self.requests.append((handler.path, asked))
        self.failures -= 1
        if self.failures >= 0 or body is None:
            handler.send_error(503 if self.failures >= 0 else 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.supports_range else 0
        beyond = start and start >= len(body)
        handler.send_response(416 if beyond else 206 if start else 200)
        if start:
            span = "*" if beyond else f"{start}-{len(body) - 1}"
            handler.send_header("Content-Range", f"bytes {span}/{len(body)}")
        if self.announces_length:
            handler.send_header("Content-Length", str(max(0, len(body) - start)))
        handler.end_headers()
        end = len(body)
        if self.close_after is not None and self.times:
            self.times -= 1
            end = min(end, start + self.close_after)
        handler.wfile.write(body[start:end])


@pytest.fixture
def host():
    """A host that has all archives of ISIC 2016."""
    host = Host()
    serve(host, "isic2016")
    yield host
    host.server.shutdown()
    host.server.server_close()


def get(host: Host, root):
    return fetch("isic2016", root, host.url, progress=False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setattr(download, "BLOCK", 250)  # the archives below are small


def picture(seed: int, mask: bool) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16) if mask else (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray((pixels > 127).astype(np.uint8) * 255 if mask else pixels).save(buffer, "png" if mask else "jpeg")
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def serve(host: Host, name: str, n: int = 12) -> None:
    """The official archives of a dataset, each with `n` files in its official top folder."""
    for i, archive in enumerate(archives(name)):
        mask, top = "GroundTruth" in archive.path, archive.name.removesuffix(".zip")
        # images and masks of a split follow each other and share their ids
        names = [f"ISIC_{1000 * (i // 2) + k:07}" + ("_Segmentation.png" if mask else ".jpg") for k in range(n)]
        pictures = {f"{top}/{name}": picture(i * n + k, mask) for k, name in enumerate(names)}
        host.files[f"/{archive.path}"] = zipped({f"{top}/LICENSE.txt": b"CC-0"} | pictures)


def is_clean(root, name="isic2016") -> bool:
    """No data folder and no archive is left: at most the resumable parts."""
    home = root / name
    visible = [path for path in home.iterdir() if path.is_dir() and path.name != ".downloads"]
    kept = [path.name for path in (home / ".downloads").iterdir() if not path.name.endswith((".part", "lock"))]
    return not visible and not kept


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.archives])
def test_what_is_fetched_is_what_the_folder_reader_reads(host, tmp_path, name):
    serve(host, name, n=40)
    assert fetch(name, tmp_path, host.url, progress=False) == tmp_path / name
    splits = find_datasets(tmp_path).datasets[name]
    fetched = {file for split in splits.values() for sample in split.samples for file in sample.files}
    assert len(fetched) == 40 * len(archives(name))
    sample = next(iter(splits.values())).samples[0]
    assert sample.image.read_bytes()[:2] == b"\xff\xd8"
    assert not (tmp_path / name / ".downloads").exists()


def test_checksums_are_pinned(host, tmp_path):
    get(host, tmp_path)
    pinned = json.loads((tmp_path / "isic2016" / "checksums.json").read_text())
    assert pinned == {path.split("/")[-1]: hashlib.sha256(body).hexdigest() for path, body in host.files.items()}


def test_what_is_there_is_skipped_with_a_message(host, tmp_path, capsys):
    (tmp_path / "ISBI2016_ISIC_Part1_Training_Data").mkdir()
    fetch("isic2016", tmp_path, host.url)
    assert FIRST not in [path for path, _ in host.requests]
    assert "Part1_Training_Data is already there: skipped" in capsys.readouterr().out
    host.requests.clear()
    get(host, tmp_path)
    assert host.requests == []
    assert capsys.readouterr().out == ""


def test_ham10000_in_its_dataverse_folders_is_not_fetched_again(host, tmp_path):
    (tmp_path / "ham10000" / "HAM10000_images_part_1").mkdir(parents=True)
    fetch("ham10000", tmp_path, host.url, progress=False)
    assert host.requests == []


def test_archive_without_top_folder_gets_one(host, tmp_path):
    host.files[FIRST] = zipped({"ISIC_0000000.jpg": picture(0, False), "__MACOSX/._ISIC_0000000.jpg": b"x"})
    get(host, tmp_path)
    folder = tmp_path / "isic2016" / "ISBI2016_ISIC_Part1_Training_Data"
    assert [path.name for path in folder.iterdir()] == ["ISIC_0000000.jpg"]


# broken connections


def test_connection_that_breaks_is_resumed_within_one_call(host, tmp_path):
    host.close_after = 1000
    get(host, tmp_path)
    ranges = [asked for path, asked in host.requests if path == FIRST]
    assert len(ranges) == -(-len(host.files[FIRST]) // 1000)
    assert ranges[:3] == [None, "bytes=1000-", "bytes=2000-"]


PARTS = {"half": 700, "whole": 10**6, "longer": -1}


@pytest.mark.parametrize("part", PARTS)
def test_what_an_earlier_call_left_is_continued(host, tmp_path, part):
    (tmp_path / "isic2016" / ".downloads").mkdir(parents=True)
    left = host.files[FIRST][: PARTS[part]] if part != "longer" else host.files[FIRST] + b"of a longer file"
    (tmp_path / "isic2016" / ".downloads" / f"{FIRST.split('/')[-1]}.part").write_bytes(left)
    get(host, tmp_path)
    asked = [asked for path, asked in host.requests if path == FIRST]
    assert asked == [f"bytes={len(left)}-"] + [None] * (part == "longer")
    assert (tmp_path / "isic2016" / "ISBI2016_ISIC_Part1_Training_Data" / "LICENSE.txt").read_text() == "CC-0"


def test_server_without_ranges_starts_again(host, tmp_path):
    host.supports_range, host.close_after, host.times = False, 1000, 2
    get(host, tmp_path)
    pinned = json.loads((tmp_path / "isic2016" / "checksums.json").read_text())
    assert pinned[FIRST.split("/")[-1]] == hashlib.sha256(host.files[FIRST]).hexdigest()


def test_server_that_always_closes_early(host, tmp_path):
    host.supports_range, host.close_after = False, 1000
    with pytest.raises(DataError, match=r"could not be downloaded \(.*0\.0 MB so far\); .* again to continue"):
        get(host, tmp_path)
    assert is_clean(tmp_path)
    host.supports_range, host.close_after = True, None
    get(host, tmp_path)
    assert (FIRST, "bytes=1000-") in host.requests


def test_a_busy_server_is_asked_again(host, tmp_path):
    host.failures = 2
    get(host, tmp_path)
    assert [path for path, _ in host.requests[:3]] == [FIRST] * 3


def test_truncated_without_announced_length_is_found_by_the_zip_check(host, tmp_path):
    host.announces_length, host.close_after, host.times = False, 1000, 1
    with pytest.raises(DataError, match="not an intact zip archive"):
        get(host, tmp_path)
    assert is_clean(tmp_path)
    get(host, tmp_path)


def test_missing_file_is_not_asked_for_twice(host, tmp_path):
    host.files.clear()
    with pytest.raises(DataError, match=r"Training_Data\.zip cannot be had \(404"):
        get(host, tmp_path)
    assert len(host.requests) == 1


@pytest.mark.parametrize(("url", "said"), [("http://127.0.0.1:9", "ConnectionError"), ("nowhere", "unpack it by hand")])
def test_no_server_at_all(tmp_path, url, said):
    with pytest.raises(DataError, match=said):
        fetch("isic2016", tmp_path, url, progress=False)


# archives that are not to be trusted


ZEROS = json.dumps({FIRST.split("/")[-1]: "0" * 64})


@pytest.mark.parametrize(("pins", "said"), [(ZEROS, "not have the SHA-256 0000"), ("sha256!", "is not of the form")])
def test_pins_that_are_wrong(host, tmp_path, pins, said):
    (tmp_path / "isic2016").mkdir()
    (tmp_path / "isic2016" / "checksums.json").write_text(pins)
    with pytest.raises(DataError, match=said):
        get(host, tmp_path)
    assert is_clean(tmp_path)


def flipped(body: bytes, *places: tuple[bytes, int]) -> bytes:
    """The archive with one bit of the byte that follows each signature changed."""
    changed = bytearray(body)
    for signature, offset in places:
        changed[changed.index(signature) + offset] ^= 1
    return bytes(changed)


def linked() -> bytes:
    link = zipfile.ZipInfo("top/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


SLIPS = ("../outside.jpg", "top/../../outside.jpg", "/outside.jpg", "C:/outside.jpg", "..\\outside.jpg")


UNTRUSTED = [
    (b"<html>please log in</html>", "not an intact zip archive"),
    (b"", "not an intact zip archive"),
    (flipped(zipped({"a.txt": b"CC-0"}), (b"CC-0", 0)), "Bad CRC"),
    (flipped(zipped({"a.jpg": b"x"}), (b"PK\x03\x04", 6), (b"PK\x01\x02", 8)), "is encrypted"),
    (zipped({}), "it is empty"),
    (linked(), "is a link or lies outside"),
    *((zipped({"ISIC_0000000.jpg": b"x", name: b"evil"}), "is a link or lies outside") for name in SLIPS),
]


@pytest.mark.parametrize(("body", "said"), UNTRUSTED)
def test_an_archive_that_is_not_to_be_trusted(host, tmp_path, body, said):
    host.files[FIRST] = body
    with pytest.raises(DataError, match=said):
        fetch("isic2016", tmp_path / "root", host.url, progress=False)
    assert is_clean(tmp_path / "root") and not (tmp_path / "root" / "isic2016" / "checksums.json").exists()
    assert not list(tmp_path.rglob("outside*"))


# disk


@pytest.mark.parametrize("free", [500, 6000])
def test_full_disk_before_download_and_before_unpacking(host, tmp_path, monkeypatch, free):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"\0" * 10**6)
    host.files[FIRST] = buffer.getvalue()
    assert 500 < len(host.files[FIRST]) < 6000
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the disk of .* is full \(.* needs 0\.00 GB and 0\.00 GB are free\)"):
        get(host, tmp_path)
    assert not (tmp_path / "isic2016" / "ISBI2016_ISIC_Part1_Training_Data").exists()


def test_root_that_cannot_be_a_folder(host, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        fetch("isic2016", tmp_path / "file", host.url, progress=False)


@pytest.mark.parametrize(("name", "said"), [("isic2019", "isic2016, isic2017, isic2018"), ("ph2", "on request")])
def test_what_cannot_be_fetched(tmp_path, name, said):
    with pytest.raises(DataError, match=rf"no dataset '{name}'.*{said}"):
        fetch(name, tmp_path)
    assert not list(tmp_path.iterdir())
