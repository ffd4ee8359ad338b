"""Fetching the official ISIC archives: resumed when interrupted, checked before unpacked, unpacked whole or not at all.

Which bytes are right? The organisers publish no checksums that we could compare with, so this is trust on first use:
the first complete download of an archive is pinned by its SHA-256 in `checksums.json` beside the data, and any later
one must be the same. To check the first download too, put a `checksums.json` with ``{"<archive>.zip": "<sha256>"}``
there before fetching, for instance one from a colleague. Without it, only transmission errors are found (the announced
length and the CRC of every file in the archive), not a host that serves something else.
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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from tokencutseg.data.datasets import OFFICIAL
from tokencutseg.data.images import DataError

HOST = "https://isic-challenge-data.s3.amazonaws.com"
WEBSITE = "https://challenge.isic-archive.com/data/"
CHECKSUMS = "checksums.json"
ATTEMPTS = 4
"""Connections in a row that bring nothing new before a download is given up."""
BLOCK = 1 << 16
"""Bytes read at once; when a connection breaks, at most one block of what had arrived is lost."""
WAIT = 2.0
"""Seconds before the second attempt; doubled before each further one."""


@dataclass(frozen=True)
class Archive:
    """One zip file of the host, and the folder it is unpacked to."""

    path: str
    folder: str
    counts_as_present: tuple[str, ...]
    """Folder names that make this archive unnecessary."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def archives(name: str) -> tuple[Archive, ...]:
    """The archives of a dataset: one per official folder of the years 2016 to 2018, and one for HAM10000.

    HAM10000 (Tschandl et al. 2018, doi 10.7910/DVN/DBW86T) is taken from the same host, as the training images of the
    2018 challenge's Task 3: the same 10,015 files, in one archive whose download can be resumed.

    Raises DataError for an unknown name.
    """
    if name not in OFFICIAL:
        raise DataError(f"no dataset {name!r} to fetch; choose one of {', '.join(OFFICIAL)}")
    if name == "ham10000":
        present = OFFICIAL[name]["unlabelled"].images
        return (Archive("2018/ISIC2018_Task3_Training_Input.zip", "ham10000_unlabelled", present),)
    folders = [folder for split in OFFICIAL[name].values() for folder in (*split.images, split.masks)]
    return tuple(Archive(f"{name.removeprefix('isic')}/{folder}.zip", folder, (folder,)) for folder in folders)


def fetch(name: str, root: str | Path, base_url: str | None = None, progress: bool = True) -> Path:
    """Download and unpack a dataset to `root`/`name`/<official folder>, as `find_datasets` reads it.

    Folders that are already there are skipped; an interrupted call is continued by the next one. A folder appears
    complete or not at all, and each archive is deleted once unpacked.

    Args:
        name: "isic2016", "isic2017", "isic2018" or "ham10000".
        root: the folder that holds all datasets; made if missing.
        base_url: a mirror with the official paths below it (`2017/ISIC-2017_Training_Data.zip`), instead of `HOST`.
        progress: show a progress bar and messages.

    Returns `root`/`name`.

    Raises DataError for an unknown name, a file that the host does not have, a connection that stays broken, a full
    disk, and an archive that is damaged, unsafe or differs from its pinned checksum.
    """
    root = Path(root)
    home, wanted = root / name, archives(name)
    downloads = home / ".downloads"
    pooch.get_logger().setLevel("WARNING")  # its notes on each file would break the progress bar
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / "lock"):
            for archive in wanted:
                there = [
                    path
                    for place in (root, home)
                    for folder in archive.counts_as_present
                    if (path := place / folder).is_dir()
                ]
                if there:
                    _say(f"{there[0]} is already there: skipped", progress)
                else:
                    _fetch_one(archive, home, f"{(base_url or HOST).rstrip('/')}/{archive.path}", progress)
        shutil.rmtree(downloads, ignore_errors=True)  # another process may be doing the same
    except OSError as error:
        raise DataError(_about_disk(error, home)) from error
    return home


def _fetch_one(archive: Archive, home: Path, url: str, progress: bool) -> None:
    """Download, verify, unpack, pin, move into place: in this order, so that nothing wrong is pinned or visible."""
    downloads = home / ".downloads"
    pinned = _read_checksums(home).get(archive.name)

    def download(url: str, output_file: str, _: object) -> None:
        partial = downloads / f"{archive.name}.part"  # kept when the connection breaks, unlike pooch's own file
        _download(url, partial, progress)
        partial.replace(output_file)

    try:
        file = Path(pooch.retrieve(url, pinned and f"sha256:{pinned}", archive.name, downloads, downloader=download))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(
            f"{archive.name} from {url} does not have the SHA-256 {pinned} pinned in {home / CHECKSUMS}: "
            f"it was changed or tampered with; find out why, or remove its line there to trust the new "
            f"file"
        ) from error
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        whole = Path(temporary) / archive.folder
        try:
            _unpack(file, whole, progress)
        except (DataError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            file.unlink()  # so that the next call downloads it again
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{archive.name} from {url} is not an intact zip archive ({error}); run the same command "
                f"again to download it anew"
            ) from error
        _pin(home, archive.name, pooch.file_hash(str(file)))
        whole.rename(home / archive.folder)
    file.unlink()
    _say(f"{home / archive.folder} is complete", progress)


# download -----------------------------------------------------------------------------------------------------------


def _download(url: str, partial: Path, progress: bool) -> None:
    """Bring the file at `url` to `partial`, continuing what is there where the server can (HTTP range requests)."""
    failures, furthest, problem = 0, 0, ""
    while failures < ATTEMPTS:
        if failures:
            time.sleep(WAIT * 2 ** (failures - 1))
        try:
            if _transfer(url, partial, progress):
                return
            problem = "the connection closed early"
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            problem = type(error).__name__
        except requests.RequestException as error:
            raise DataError(f"{url} cannot be fetched ({error}); correct the base_url") from error
        size = _size(partial)
        failures = failures + 1 if size <= furthest else 0
        furthest = max(furthest, size)
    raise DataError(
        f"{url} could not be downloaded ({problem}, {furthest / 1e6:.1f} MB so far); check the network and "
        f"run the same command again to continue, or get it by hand from {WEBSITE}"
    )


def _transfer(url: str, partial: Path, progress: bool) -> bool:
    """One connection. True when the file is whole, as far as the announced length tells."""
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
        if response.status_code == 416:  # nothing at or after `have`
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            partial.unlink()  # longer than the file: not a part of it
            return False
        if response.status_code >= 500 or response.status_code in (408, 429):  # the server's trouble, or its pace
            raise requests.ConnectionError(f"HTTP {response.status_code}")
        if response.status_code >= 400:
            raise DataError(
                f"{url} cannot be had (HTTP {response.status_code} {response.reason}); look for it on "
                f"{WEBSITE} and unpack it by hand, or give another base_url"
            )
        resumed = response.status_code == 206
        have = have if resumed else 0  # a server without range support sends the whole file again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total:
            _check_space(partial.parent, total - have, url)
        with (
            partial.open("ab" if resumed else "wb") as file,
            tqdm(desc=partial.stem, total=total, initial=have, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or _size(partial) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# unpacking ----------------------------------------------------------------------------------------------------------


def _unpack(file: Path, folder: Path, progress: bool) -> None:
    """Unpack to `folder`, which must not exist; a single top folder in the archive is replaced by it.

    Every member's CRC is verified as it is read. Raises BadZipFile for a damaged archive and DataError for one with a
    member that would land elsewhere, a link, or an encrypted member.
    """
    with zipfile.ZipFile(file) as archive:
        members = [(m, _safe_path(m, file.name)) for m in archive.infolist() if not m.is_dir()]
        members = [(m, path) for m, path in members if path.parts[0] != "__MACOSX"]  # Finder's attributes
        if not members:
            raise DataError(f"{file.name} is an empty archive; download it again or from elsewhere")
        _check_space(file.parent, sum(m.file_size for m, _ in members), file.name)
        tops = {path.parts[0] for _, path in members}
        depth = 1 if len(tops) == 1 and all(len(path.parts) > 1 for _, path in members) else 0
        for member, path in tqdm(members, desc=f"unpacking {folder.name}", unit="file", disable=not progress):
            target = folder.joinpath(*path.parts[depth:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _safe_path(member: zipfile.ZipInfo, archive: str) -> PurePosixPath:
    """Where a member goes, relative to the folder. Raises DataError if that is outside it, and for links."""
    path = PurePosixPath(member.filename)
    outside = path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
    if outside or not path.parts or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(
            f"{archive} holds {member.filename!r}, which is a link or lies outside the target folder; "
            f"nothing was unpacked: do not use this archive"
        )
    if member.flag_bits & 1:
        raise DataError(f"{archive} is encrypted; get the public archive from {WEBSITE}")
    return path


# checksums and disk -------------------------------------------------------------------------------------------------


def _read_checksums(home: Path) -> dict[str, str]:
    path = home / CHECKSUMS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(
            f'{path} is not of the form {{"<archive>.zip": "<sha256>"}} ({error}); repair or remove it'
        ) from error


def _pin(home: Path, name: str, sha256: str) -> None:
    record = _read_checksums(home) | {name: sha256}
    new = home / f"{CHECKSUMS}.new"
    new.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(home / CHECKSUMS)


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{what} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free", str(folder))


def _about_disk(error: OSError, home: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of {home} is full ({error.strerror}); make room and run the same command again to continue"
    return f"cannot write to {home} ({error.strerror or error}); give another folder or correct its permissions"


def _say(message: str, progress: bool) -> None:
    if progress:
        tqdm.write(message)
