"""What a table beside the images says of them: patient, lesion, diagnosis, size of the photograph.

`manifest.csv` or `…metadata.csv`, one row per image: the column `id`, and any of `native_size` (WIDTHxHEIGHT in
pixels), `patient_id`, `lesion_id` and `dx`. Other columns are ignored. Missing values (`MISSING`) are missing.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from pathlib import Path

from tokencutseg.data.images import DataError, some

MISSING = {"", "na", "n/a", "nan", "none", "null", "nil", "-", "--", "?", ".", "unknown", "unk", "missing"}
COLUMNS = {
    "id": ("id", "imageid", "image", "imagename", "isicid", "filename", "file", "name"),
    "native_size": ("nativesize",),
    "patient_id": ("patientid", "patient"),
    "lesion_id": ("lesionid", "lesion"),
    "group": ("dx", "diagnosis", "group"),
}
"""Each field's names, in small letters and without anything between them."""


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """{id: {field: value}} of a table, without missing values. Raises DataError for one that cannot be understood."""
    text = re.sub(r"^sep=.\s*\n", "", _decoded(path))  # which some spreadsheets write above the header
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=text.split("\n", 1)[0].count)))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); save it as CSV in UTF-8") from error
    header = [re.sub(r"[^a-z]", "", title.casefold()) for title in rows[0]] if rows else []
    places = {field: [header.index(name) for name in names if name in header] for field, names in COLUMNS.items()}
    if rows and not places["id"]:
        raise DataError(f"{path} has no column id, only {', '.join(rows[0])}; call the column of the images' names id")
    known: dict[str, dict[str, str]] = {}
    for row in rows[1:]:
        cells = {field: row[at[0]].strip(" \t\0") for field, at in places.items() if at and at[0] < len(row)}
        cells = {field: value for field, value in cells.items() if value.casefold() not in MISSING}
        if (own := cells.pop("id", None)) is None:
            continue
        if known.setdefault(own, cells) != cells:
            raise DataError(f"{path} has two rows for {own} that differ; keep the right one")
    return known


def cluster_of(cells: dict[str, str]) -> str | None:
    """The patient of a row, or the lesion where no patient is named."""
    return cells.get("patient_id") or cells.get("lesion_id")


def fields_of(path: Path, own: str, cells: dict[str, str]) -> dict[str, object]:
    """What a row says, as fields of a `Sample`. Raises DataError for a size that is none."""
    fields: dict[str, object] = {"group": cells.get("group"), "cluster": cluster_of(cells)}
    if size := cells.get("native_size"):
        if not (parts := re.fullmatch(r"([1-9]\d*) ?[x×] ?([1-9]\d*)", size)):
            wanted = "write WIDTHxHEIGHT in pixels, such as 1022x767, or leave it empty"
            raise DataError(f"{path} gives the native_size of {own} as {size!r}; {wanted}")
        fields["native_size"] = int(parts[2]), int(parts[1])
    return {name: value for name, value in fields.items() if value}


def describe_table(path: Path, known: dict[str, dict[str, str]], ids: list[str], matched: dict[str, str]) -> list[str]:
    """What is worth saying about a table that was joined to images: who is not in it, and one patient who has half."""
    notes = [] if known else [f"{path} says nothing of any image"]
    if other := {name: own for name, own in matched.items() if name != own}:
        example = " for ".join(next(iter(other.items())))
        notes.append(f"{path}: {len(other)} rows are read for images that are named a little differently: {example}")
    clusters = {own: cluster for name, own in matched.items() if (cluster := cluster_of(known[name]))}
    if not clusters:
        return notes
    if alone := [own for own in ids if own not in clusters]:
        of = f"{len(alone)} of {len(ids)} images ({some(alone)})"
        notes.append(f"{path} names no patient or lesion of {of}: each of them counts as one of its own")
    largest, count = Counter(clusters.values()).most_common(1)[0]
    if count > 2 and 2 * count >= len(ids):
        notes.append(f"{path} gives {count} of {len(ids)} images to {largest}: is that one patient?")
    return notes


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    codecs = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252", "latin-1")
    for codec in codecs:
        try:
            return unicodedata.normalize("NFC", content.decode(codec))
        except UnicodeDecodeError:
            pass
    raise DataError(f"{path} cannot be read as text; save it as CSV in UTF-8")
