"""Images between hosts: one tar in OCI layout, with the image and all that refers to it.

What is exported depends on the image alone, byte for byte. What is imported is taken for hostile:
it is read into a folder of its own, held against every digest and a trusted key there, and only
then do its blobs get names in the store, by renames. Nothing of it is ever run or unpacked here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from dataplane.image.code import MAX_MEMBERS, MEMBER_NAME
from dataplane.image.files import (
    TEMPORARY,
    digest_of_file,
    open_plain,
    sync_folder,
    write_atomically,
)
from dataplane.image.keys import Keys
from dataplane.image.listing import (
    Entry,
    Manifest,
    find_line,
    image_line,
    list_line,
    list_of_referrers,
    read_entry,
    read_index,
    read_manifest,
    referrers_list,
    tag_of,
    write_index,
)
from dataplane.image.signing import (
    MAX_REFERRERS,
    PROVENANCE_TYPE,
    SIGNATURE_TYPE,
    Proven,
    check_signed,
    proven_referrer,
    proven_referrers,
    provenance_of,
)
from dataplane.image.store import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_BLOB_BYTES,
    TAG_ANNOTATION,
    Image,
    Store,
    canonical,
    disk_failure,
    referrers_tag,
)
from dataplane.image.tar import BLOCK, CHUNK, Bounds, Member, Stream, StrictTar
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest

# An image has 4 blobs, and 3 for each of what refers to it: some hundred signers would fit.
MAX_TAR_MEMBERS: Final = 512
MAX_TOTAL_BYTES: Final = 2 * MAX_BLOB_BYTES  # one code layer, which has the size of nearly all
MAX_DOCUMENT_BYTES: Final = 16 << 20  # all but code is JSON; a spec travels in at most that much
MAX_INDEX_BYTES: Final = 1 << 20  # held in memory: two lines are a kilobyte
MAX_MANIFEST_BYTES: Final = 1 << 20  # and of a list of referrers: of 64 it has 20 KB
OWN_REFERRERS: Final = 2  # this host's own signature and provenance, for which there must be room

_LAYOUT: Final = {"imageLayoutVersion": "1.0.0"}
_KNOWN_KINDS: Final = (SIGNATURE_TYPE, PROVENANCE_TYPE)
_STAGING: Final = f"{TEMPORARY}import-"
_BLOB_NAME: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_FOLDERS: Final = ("", ".", "blobs", "blobs/sha256")
_PLAIN: Final = ("oci-layout", "index.json")
_TAR_BOUNDS: Final = Bounds(
    members=MAX_TAR_MEMBERS, member_bytes=MAX_BLOB_BYTES, total_bytes=MAX_TOTAL_BYTES
)
_CODE_BOUNDS: Final = Bounds(
    members=MAX_MEMBERS, member_bytes=MAX_BLOB_BYTES, total_bytes=MAX_BLOB_BYTES
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came in."""

    image: Image
    key: str  # whose signature it was taken for
    is_new: bool


# --- out ---------------------------------------------------------------------------------------


def export_image(store: Store, digest: Digest, path: Path) -> None:
    """Writes the image's tar to a file, whole or not at all. Raises `ImageError`."""
    try:
        fd, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        try:
            with open(fd, "wb") as file:
                write_image(store, digest, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror}") from error


def write_image(store: Store, digest: Digest, target: BinaryIO) -> None:
    """Writes the image's tar. Every blob is held against its digest as it passes: where one is
    wrong, `ImageError` is raised and the tar has no end, so that nobody takes it."""
    with contextlib.ExitStack() as opened:
        # Open files stay readable, whatever is pruned meanwhile.
        with store.writing():
            index = read_index(store)
            entry = read_entry(store, index, find_line(index, digest))
            files = {
                blob: opened.enter_context(_open_blob(store, blob)) for blob in sorted(entry.blobs)
            }
        _write_member(target, "oci-layout", canonical(_LAYOUT))
        _write_member(target, "index.json", _exported_index(entry))
        for blob, file in files.items():
            _write_blob(target, blob, file)
        target.write(bytes(2 * BLOCK))


def _exported_index(entry: Entry) -> bytes:
    line = image_line(entry.manifest)
    if entry.app is not None:
        # The name by which other tools find it: `skopeo inspect oci-archive:FILE:APP`.
        line["annotations"][TAG_ANNOTATION] = entry.app
    lines = [line]
    if entry.listed is not None:
        lines.append(entry.listed)
    return canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": lines})


def _open_blob(store: Store, blob: Digest) -> BinaryIO:
    try:
        return open_plain(store.blob_path(blob))
    except FileNotFoundError:
        raise ImageError(f"{blob} is not in the store {store.folder}") from None


def _write_member(target: BinaryIO, name: str, content: bytes) -> None:
    target.write(_header(name, len(content)))
    target.write(content)
    target.write(bytes(-len(content) % BLOCK))


def _write_blob(target: BinaryIO, blob: Digest, file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    target.write(_header(f"blobs/sha256/{blob.removeprefix('sha256:')}", size))
    total, written = hashlib.sha256(), 0
    while chunk := file.read(CHUNK):
        total.update(chunk)
        written += len(chunk)
        target.write(chunk)
    if written != size or total.hexdigest() != blob.removeprefix("sha256:"):
        raise ImageError(f"{file.name} is damaged: its content is not {blob}; build it again")
    target.write(bytes(-size % BLOCK))


def _header(name: str, size: int) -> bytes:
    """No times, no owners, one mode."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o444
    return member.tobuf(tarfile.USTAR_FORMAT)


# --- in ----------------------------------------------------------------------------------------


def import_image(store: Store, keys: Keys, stream: Stream, what: str) -> Imported:
    """Takes the one image of a tar into the store, with all that refers to it.

    Raises `ImageError` for whatever is not exactly such a tar of a trusted key, and then nothing of
    it is in the store.
    """
    with _staging(store) as staged:
        try:
            lines = _read_tar(staged, stream, what)
            entry = _check_form(staged, lines, what)
            image = _check_content(staged, entry, what)
        except OSError as error:
            raise ImageError(disk_failure(store.state_dir, error)) from error
        key = check_signed(staged, keys, image.digest)
        provenance_of(staged, keys, image.digest)  # can be read
        # What others say of it stays outside, and what is said twice: enough of that would fill an
        # image's list.
        proven = {one.says: one for one in reversed(proven_referrers(staged, keys, image.digest))}
        is_new = _commit(store, keys, staged, entry, tuple(proven.values()))
    return Imported(image=image, key=key, is_new=is_new)


@contextlib.contextmanager
def _staging(store: Store) -> Iterator[Store]:
    """A store of its own beside the real one, on the same disk; gone afterwards."""
    with contextlib.ExitStack() as until_done:
        with store.writing():
            for left in store.state_dir.glob(f"{_STAGING}*"):
                _remove_if_dead(left)
            folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=store.state_dir))
            until_done.callback(shutil.rmtree, folder, ignore_errors=True)
            # Held for as long as we live: that is how the next one knows.
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            until_done.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            staged = Store(folder)
            (staged.folder / "blobs" / "sha256").mkdir(parents=True)
        yield staged


def _remove_if_dead(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # its own import has just ended
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _read_tar(staged: Store, stream: Stream, what: str) -> list[dict[str, Any]]:
    """Puts every blob under its digest, which it is held against, and returns the index's lines."""
    documents: dict[str, bytes] = {}
    names: set[str] = set()
    tar = StrictTar(stream, what, _TAR_BOUNDS)
    for member in tar.members():
        name = _plain_name(member, what)
        if name in names:
            raise ImageError(f"{what} is refused: {name!r} is in it twice")
        names.add(name)
        blob = _BLOB_NAME.fullmatch(name)
        if blob is not None:
            _stage_blob(staged, Digest(f"sha256:{blob[1]}"), tar, what)
        elif name in _PLAIN:
            if member.size > MAX_INDEX_BYTES:
                raise ImageError(f"{what} is refused: {name} has more than {MAX_INDEX_BYTES} bytes")
            documents[name] = b"".join(tar.content())
    for name in _PLAIN:
        if name not in documents:
            raise ImageError(f"{what} is refused: it has no {name}, so it is no OCI image layout")
    try:
        if json.loads(documents["oci-layout"])["imageLayoutVersion"] != "1.0.0":
            raise ImageError(f"{what} is refused: its layout is of another version than 1.0.0")
        lines = json.loads(documents["index.json"])["manifests"]
        for line in lines:
            staged.blob_path(Digest(line["digest"]))
            if type(line["size"]) is not int:
                raise TypeError(f"{line['size']!r} is not a size")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ImageError(f"{what} is refused: its index is not understood: {error!r}") from error
    write_index(staged, {"manifests": lines})
    return list(lines)


def _plain_name(member: Member, what: str) -> str:
    """The name without what programs put around it. Anything that is not of a layout is refused."""
    name = member.name.removeprefix("./")
    if member.is_folder and name.removesuffix("/") in _FOLDERS:
        return name.removesuffix("/") + "/"
    if not member.is_folder and (name in _PLAIN or _BLOB_NAME.fullmatch(name) is not None):
        return name
    if member.name.startswith("/"):
        raise ImageError(f"{what} is refused: {member.name!r} is an absolute path")
    if ".." in member.name.split("/"):
        raise ImageError(f"{what} is refused: {member.name!r} leads out of its folder")
    raise ImageError(f"{what} is refused: {member.name!r} is no part of an OCI image layout")


def _stage_blob(staged: Store, digest: Digest, tar: StrictTar, what: str) -> None:
    total = hashlib.sha256()
    fd = os.open(
        staged.blob_path(digest), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444
    )
    with open(fd, "wb") as file:
        for chunk in tar.content():
            total.update(chunk)
            file.write(chunk)
        file.flush()
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    if f"sha256:{total.hexdigest()}" != digest:
        raise ImageError(f"{what} is refused: a blob is not what its name says: {digest}")


def _check_form(staged: Store, lines: list[dict[str, Any]], what: str) -> Entry:
    """One image, at most one list of what refers to it, and every blob that they need: no other."""
    # Other tools leave out of the index what the manifest says, so the kind is asked of that.
    images = [line for line in lines if line.get("mediaType") == MANIFEST_TYPE]
    if len(images) != 1:
        raise ImageError(f"{what} is refused: it has {len(images)} images, expected one")
    digest = Digest(images[0]["digest"])
    sizes = {
        Digest(f"sha256:{path.name}"): path.stat().st_size
        for path in (staged.folder / "blobs" / "sha256").iterdir()
    }
    named = [Digest(line["digest"]) for line in lines]
    _check_documents(sizes, named, what, MAX_MANIFEST_BYTES)
    for line in lines:
        if line is not images[0] and (
            line.get("mediaType") != INDEX_TYPE or tag_of(line) != referrers_tag(digest)
        ):
            raise ImageError(f"{what} is refused: {line['digest']} is not about its image")
    for line in lines:
        if line is not images[0]:
            listed = list_of_referrers(staged, Digest(line["digest"]))
            if len(set(listed)) != len(listed):
                raise ImageError(f"{what} is refused: {line['digest']} lists something twice")
            _check_documents(sizes, listed, what, MAX_MANIFEST_BYTES)
    entry = read_entry(staged, {"manifests": lines}, images[0])
    manifests = (entry.manifest, *entry.referrers)
    for manifest in manifests:
        for blob in (manifest.config, *manifest.layers):
            if sizes.get(Digest(blob["digest"])) != blob["size"]:
                raise ImageError(
                    f"{what} is refused: {blob['digest']} is missing or has another size"
                )
        below = manifest.blobs - ({entry.code_layer} if manifest is entry.manifest else set())
        _check_documents(sizes, below, what, MAX_DOCUMENT_BYTES)
    for line in lines:
        if sizes[Digest(line["digest"])] != line["size"]:
            raise ImageError(f"{what} is refused: {line['digest']} has another size")
    if len(lines) > 2 or entry.blobs != sizes.keys():
        raise ImageError(f"{what} is refused: it holds what no part of its image needs")
    for referrer in entry.referrers:
        if referrer.kind not in _KNOWN_KINDS:
            raise ImageError(f"{what} is refused: {referrer.digest} is of an unknown kind")
    return entry


def _check_documents(
    sizes: dict[Digest, int], blobs: Collection[Digest], what: str, most: int
) -> None:
    """These are about to be read into memory, where JSON takes twenty times as much."""
    for blob in blobs:
        if blob not in sizes:
            raise ImageError(f"{what} is refused: it lacks {blob}")
        if sizes[blob] > most:
            raise ImageError(f"{what} is refused: {blob} has more than {most} bytes")


def _check_content(staged: Store, entry: Entry, what: str) -> Image:
    """The image is one, and its code can be unpacked without harm."""
    image = staged.image(entry.digest)
    if entry.app != image.app:
        raise ImageError(f"{what} is refused: it calls itself {entry.app!r} and is {image.app}'s")
    with staged.blob_path(image.code_layer).open("rb") as file:
        tar = StrictTar(file, f"{what}: its code layer {image.code_layer}", _CODE_BOUNDS)
        for member in tar.members():
            if member.is_folder or MEMBER_NAME.fullmatch(member.name) is None:
                raise ImageError(
                    f"{what} is refused: its code has an unsafe member {member.name!r}"
                )
    return image


def _commit(
    store: Store, keys: Keys, staged: Store, entry: Entry, proven: tuple[Proven, ...]
) -> bool:
    """All is proven and on disk: now it gets its names, the index last. Whether it is new here."""
    with store.writing():
        index = read_index(store)
        lines = index["manifests"]
        is_new = all(line["digest"] != entry.digest for line in lines)
        kept, known = _listed_here(store, index, entry)
        said = _said(store, keys, entry.digest, kept)
        coming = {one.referrer for one in proven if one.says not in said}
        new = [one for one in entry.referrers if one.digest in coming]
        kept = tuple(one for one in kept if one.digest not in coming)  # damaged, if it was here
        if new and len(kept) + len(new) > MAX_REFERRERS - OWN_REFERRERS:
            raise ImageError(f"too much is listed beside {entry.digest} for {len(new)} more")
        for manifest in (entry.manifest, *new):
            for blob in sorted(manifest.blobs):
                path = store.blob_path(blob)
                if not _is_sound(path, blob):  # nor put there for a manifest before this one
                    os.rename(staged.blob_path(blob), path)
        if is_new:
            lines.append(image_line(entry.manifest))
        if new:
            content = referrers_list((*kept, *new))
            listed = list_line(entry.digest, content)
            path = store.blob_path(Digest(listed["digest"]))
            if not _is_sound(path, Digest(listed["digest"])):
                write_atomically(path, content, 0o444)
            index["manifests"] = [line for line in lines if line != known] + [listed]
        sync_folder(store.folder / "blobs" / "sha256")
        write_index(store, index)
    return is_new


def _listed_here(
    store: Store, index: dict[str, Any], entry: Entry
) -> tuple[tuple[Manifest, ...], dict[str, Any] | None]:
    """What is listed beside the image here already, and the list's line."""
    tag = referrers_tag(entry.digest)
    known = next((line for line in index["manifests"] if tag_of(line) == tag), None)
    if known is None:
        return (), None
    kept = []
    with contextlib.suppress(ImageError):  # a damaged list is made anew
        for one in list_of_referrers(store, Digest(known["digest"])):
            with contextlib.suppress(ImageError):
                kept.append(read_manifest(store, one))
    return tuple(kept), known


def _said(
    store: Store, keys: Keys, digest: Digest, listed: tuple[Manifest, ...]
) -> set[tuple[str, bytes]]:
    """What trusted keys say here of the image already."""
    said = set()
    for one in listed:
        with contextlib.suppress(ImageError):
            proven = proven_referrer(store, keys, digest, one.digest)
            if proven is not None:
                said.add(proven.says)
    return said


def _is_sound(path: Path, blob: Digest) -> bool:
    try:
        return digest_of_file(path) == blob
    except OSError:
        return False
