"""Fetch the official archives: resumed when interrupted, checked before unpacked, unpacked whole or not at all.

The organisers publish no checksums, so this is trust on first use: the first complete download of an archive is pinned
by its SHA-256 in `checksums.json` beside the data, and any later one must be the same. A ``{"<archive>.zip":
"<sha256>"}`` that is put there before is checked from the first one on; without it only transmission errors are found.
"""

from __future__ import annotations

import errno
import json
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pooch
import requests
from tqdm import tqdm

from tokencutseg.data.datasets import DATASETS, Archive
from tokencutseg.data.folders import official_folders
from tokencutseg.data.images import DataError
from tokencutseg.data.pairing import Found
from tokencutseg.files import locked, write_json

HOST = "https://isic-challenge-data.s3.amazonaws.com"
CHECKSUMS = "checksums.json"
ATTEMPTS = 4
"""Connections in a row that bring nothing new before a download is given up."""
BLOCK = 1 << 16
"""Bytes read at once; when a connection breaks, at most one block of what had arrived is lost."""
WAIT = 2.0
"""Seconds before the second attempt; doubled before each further one."""


def fetch(name: str, root: str | Path, base_url: str | None = None, progress: bool = True) -> Path:
    """Download and unpack a dataset to `root`/`name`/<official folder>, as `find_datasets` reads it, and return that.

    Folders that are already there are skipped; an interrupted call is continued by the next one. A folder appears
    complete or not at all. `base_url` is a mirror of `HOST` with the official paths below it.

    Raises DataError for a name that cannot be fetched, a file that the host does not have, a connection that stays
    broken, a full disk, and an archive that is damaged, unsafe or differs from its pinned checksum.
    """
    home, wanted = Path(root) / name, archives(name)
    downloads = home / ".downloads"
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with locked(downloads / "lock"):
            present = official_folders(Path(root), Found())
            for archive in wanted:
                there = next((present[name] for name in archive.counts_as_present if name in present), None)
                if not there:
                    _fetch_one(archive, home, f"{(base_url or HOST).rstrip('/')}/{archive.path}", progress)
                if progress:
                    tqdm.write(f"{there} is already there: skipped" if there else f"{archive.folder} is complete")
        shutil.rmtree(downloads, ignore_errors=True)  # another process may be doing the same
    except OSError as error:
        full = error.errno == errno.ENOSPC
        what = f"the disk of {home} is full" if full else f"cannot write to {home}"
        then = "make room and run the same command again" if full else "give another folder or correct its permissions"
        raise DataError(f"{what} ({error.strerror or error}); {then}") from error
    return home


def archives(name: str) -> tuple[Archive, ...]:
    """The archives of a dataset. Raises DataError for an unknown name and for a set that has to be asked for."""
    if name not in DATASETS or not DATASETS[name].archives:
        known = ", ".join(known for known, dataset in DATASETS.items() if dataset.archives)
        by_hand = ", which its authors give on request" if name in DATASETS else ""
        raise DataError(f"no dataset {name!r} to fetch{by_hand}; choose one of {known}")
    return DATASETS[name].archives


def _fetch_one(archive: Archive, home: Path, url: str, progress: bool) -> None:
    """Download, verify, unpack, pin, move into place: in this order, so that nothing wrong is pinned or visible."""
    downloads, pins = home / ".downloads", _read_checksums(home)
    file = downloads / f"{archive.name}.part"  # kept when the connection breaks
    _download(url, file, progress)
    digest = pooch.file_hash(str(file))
    if digest != (pinned := pins.get(archive.name, digest)):
        file.unlink()
        said = f"{archive.name} from {url} does not have the SHA-256 {pinned} pinned in {home / CHECKSUMS}"
        raise DataError(f"{said}: it was changed or tampered with; find out why before you pin the new one")
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        try:
            whole = _unpack(file, Path(temporary) / archive.folder, progress)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
            file.unlink()  # so that the next call downloads it again
            said = f"{archive.name} from {url} is not an intact zip archive ({error})"
            raise DataError(f"{said}; fetch it again") from error
        write_json(pins | {archive.name: digest}, home / CHECKSUMS)
        whole.rename(home / archive.folder)
    file.unlink()


def _download(url: str, partial: Path, progress: bool) -> None:
    """Bring the file at `url` to `partial`, continuing what is there where the server can (HTTP range requests)."""
    failures, furthest, problem = 0, 0, ""
    partial.touch()
    while failures < ATTEMPTS:
        if failures:
            time.sleep(WAIT * 2 ** (failures - 1))
        try:
            if _transfer(url, partial, progress):
                return
            problem = "the connection closed early"
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            problem = type(error).__name__
        except requests.RequestException as error:  # a code that no second attempt changes, or no URL at all
            hint = "look for it on the set's website and unpack it by hand"
            raise DataError(f"{url} cannot be had ({error}); {hint}") from error
        failures = failures + 1 if partial.stat().st_size <= furthest else 0
        furthest = max(furthest, partial.stat().st_size)
    said = f"{url} could not be downloaded ({problem}, {furthest / 1e6:.1f} MB so far)"
    raise DataError(f"{said}; check the network and run the same command again to continue")


def _transfer(url: str, partial: Path, progress: bool) -> bool:
    """One connection. True when the file is whole, as far as the announced length tells."""
    have = partial.stat().st_size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
        if response.status_code == 416:  # nothing at or after `have`
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            partial.write_bytes(b"")  # longer than the file: not a part of it
            return False
        if response.status_code >= 500 or response.status_code in (408, 429):  # the server's trouble, or its pace
            raise requests.ConnectionError(f"HTTP {response.status_code}")
        response.raise_for_status()
        have = have if response.status_code == 206 else 0  # a server without range support sends the whole file again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _check_space(partial.parent, total - have if total else 0, url)
        with (
            partial.open("ab" if have else "wb") as file,
            tqdm(desc=partial.stem, total=total, initial=have, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or partial.stat().st_size == total


def _unpack(file: Path, folder: Path, progress: bool) -> Path:
    """Unpack to `folder`, which must not exist, and return it, or the only folder in it.

    Every member's CRC is verified as it is read. Raises BadZipFile (or what else the library raises) for a damaged or
    empty archive and for one with a link or a member that would land elsewhere.
    """
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        for member in members:
            path, link = PurePosixPath(member.filename), stat.S_ISLNK(member.external_attr >> 16)
            if link or path.is_absolute() or ".." in path.parts or {"\\", ":"} & set(member.filename):
                raise zipfile.BadZipFile(f"{member.filename!r} is a link or lies outside the target folder")
        if not members:
            raise zipfile.BadZipFile("it is empty")
        _check_space(file.parent, sum(m.file_size for m in members), file.name)
        for member in tqdm(members, desc=f"unpacking {folder.name}", unit="file", disable=not progress):
            archive.extract(member, folder)
    [first, *others] = folder.iterdir()
    return first if first.is_dir() and not others else folder


def _read_checksums(home: Path) -> dict[str, str]:
    path = home / CHECKSUMS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise DataError(f'{path} is not of the form {{"<archive>.zip": "<sha256>"}} ({error}); repair it') from error


def _check_space(folder: Path, needed: int, what: str) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(errno.ENOSPC, f"{what} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free", str(folder))
