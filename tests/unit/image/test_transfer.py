"""An export is what it is byte for byte; an import takes exactly such a tar, or leaves nothing."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.image import transfer
from dataplane.image.build import build_signed
from dataplane.image.keys import Keys
from dataplane.image.listing import read_entries, read_index, write_index
from dataplane.image.prune import prune
from dataplane.image.signing import (
    MAX_REFERRERS,
    SIGNATURE_TYPE,
    Provenance,
    check_signed,
    referrers_of,
    sign_image,
    signatures_of,
)
from dataplane.image.store import (
    APP_ANNOTATION,
    IMAGE_TYPE,
    TAG_ANNOTATION,
    NewReferrer,
    Store,
    canonical,
    digest_of,
    referrers_tag,
)
from dataplane.image.tar import Bounds, StrictTar
from dataplane.image.transfer import export_image, import_image, write_image
from dataplane.image.verify import verify_store
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from tests.unit.model.test_spec import SPEC

PROVENANCE = Provenance(
    files=(), revision=None, builder="1.2.3", time="2026-01-01T00:00:00Z", user="ann"
)
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def keys(store: Store) -> Keys:
    made = Keys(store.state_dir)
    made.ensure()
    return made


@pytest.fixture
def exported(store: Store, keys: Keys, package_root: Path) -> bytes:
    """The tar of a small image, signed, with provenance."""
    digest = build_signed(store, keys, SPEC, package_root, PROVENANCE)
    return tar_of(store, digest)


@pytest.fixture
def other(tmp_path: Path, keys: Keys) -> tuple[Store, Keys]:
    """Another host, which trusts this one."""
    store = Store.open(tmp_path / "other")
    theirs = Keys(store.state_dir)
    theirs.ensure()
    own = keys.own()
    assert own is not None
    theirs.trust(own)
    return store, theirs


def tar_of(store: Store, digest: Digest) -> bytes:
    target = io.BytesIO()
    write_image(store, digest, target)
    return target.getvalue()


def take(there: tuple[Store, Keys], content: bytes) -> transfer.Imported:
    return import_image(*there, io.BytesIO(content), "x.tar")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def unpacked(content: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found: Members = []
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found.append((member, file.read()))
        return found


def packed(members: Members, end: bytes = bytes(1024)) -> bytes:
    parts = []
    for member, content in members:
        parts += [member.tobuf(tarfile.GNU_FORMAT), content, bytes(-len(content) % 512)]
    return b"".join(parts) + end


def plain(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


# --- what is taken ----------------------------------------------------------------------------


def test_an_image_arrives_with_all_that_refers_to_it(
    store: Store, exported: bytes, other: tuple[Store, Keys]
) -> None:
    done = take(other, exported)
    (image,) = store.images()
    assert (done.image, done.is_new) == (image, True)
    assert check_signed(*other, image.digest) == done.key
    (entry,) = read_entries(other[0])
    assert [referrer.kind.split(".")[2] for referrer in entry.referrers] == [
        "signature",
        "provenance",
    ]
    assert verify_store(*other).is_sound
    assert tar_of(other[0], image.digest) == exported  # nothing was added, lost or reordered


def test_a_second_import_changes_nothing(exported: bytes, other: tuple[Store, Keys]) -> None:
    take(other, exported)
    before = files(other[0].state_dir)
    assert not take(other, exported).is_new
    assert files(other[0].state_dir) == before


def test_an_export_depends_on_the_image_alone(
    store: Store, keys: Keys, exported: bytes, tmp_path: Path
) -> None:
    (image,) = store.images()
    store.add(dataclasses.replace(SPEC, app="shop"), image.abi, image.code_layer, "1.2.3")
    os.utime(store.blob_path(image.digest), (1, 1))
    export_image(store, image.digest, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == exported
    assert (tmp_path / "x.tar").stat().st_mode & 0o077 == 0


def test_a_tar_of_another_program_is_taken(exported: bytes, other: tuple[Store, Keys]) -> None:
    """With folders, a dot in front, other times and owners, padded, the index reduced."""
    members = [plain(name, type=tarfile.DIRTYPE) for name in (".", "./blobs/", "./blobs/sha256/")]
    for member, content in unpacked(exported):
        if member.name == "index.json":
            index = json.loads(content)
            for line in index["manifests"]:
                line.pop("artifactType", None)
            content = json.dumps(index, indent=2).encode()
        members.append(plain(f"./{member.name}", content, mtime=1e9, uid=1000, uname="ann"))
    assert take(other, packed(members, bytes(10240))).is_new


def test_what_others_say_of_an_image_stays_outside(
    store: Store, exported: bytes, other: tuple[Store, Keys], tmp_path: Path
) -> None:
    """Else a stranger could fill an image's list until no signature of it is read any more."""
    stranger = Keys(tmp_path / "stranger")
    stranger.ensure()
    (image,) = store.images()
    sign_image(store, stranger, image.digest)
    assert len(read_entries(store)[0].referrers) == 3
    done = take(other, tar_of(store, image.digest))
    assert len(read_entries(other[0])[0].referrers) == 2
    assert verify_store(*other).is_sound
    assert done.key != stranger.trusted()[0].id


def test_a_damaged_store_is_healed_by_an_import(
    store: Store, exported: bytes, other: tuple[Store, Keys]
) -> None:
    done = take(other, exported)
    path = other[0].blob_path(done.image.code_layer)
    path.chmod(0o644)
    path.write_bytes(b"wrong")
    assert not verify_store(*other).is_sound
    take(other, exported)
    assert verify_store(*other).is_sound


def test_a_damaged_blob_is_never_exported(store: Store, exported: bytes, tmp_path: Path) -> None:
    (image,) = store.images()
    path = store.blob_path(image.code_layer)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ImageError, match="damaged"):
        export_image(store, image.digest, tmp_path / "x.tar")
    assert not [left for left in tmp_path.iterdir() if left.is_file()]


# --- what is refused --------------------------------------------------------------------------


def with_member(*extra: tuple[tarfile.TarInfo, bytes]) -> Callable[[bytes], bytes]:
    return lambda content: packed([*unpacked(content), *extra])


def with_end(end: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[: -len(bytes(1024))] + end


def without(name: str) -> Callable[[bytes], bytes]:
    return lambda content: packed([one for one in unpacked(content) if one[0].name != name])


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        return packed(
            [
                plain(member.name, change(data)) if member.name == name else (member, data)
                for member, data in unpacked(content)
            ]
        )

    return apply


def in_index(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        index = json.loads(content)
        change(index)
        return canonical(index)

    return changed("index.json", apply)


def with_huge_size(content: bytes) -> bytes:
    member, _ = plain("blobs/sha256/" + "0" * 64)
    member.size = 1 << 33
    return member.tobuf(tarfile.GNU_FORMAT) + content


def with_binary_size(content: bytes) -> bytes:
    header = bytearray(content[:512])
    header[124] = 0x80
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def with_many(content: bytes) -> bytes:
    blobs = [b"%d" % number for number in range(600)]
    names = ["blobs/sha256/" + digest_of(blob).removeprefix("sha256:") for blob in blobs]
    return packed([plain(name, blob) for name, blob in zip(names, blobs, strict=True)])


BLOB = b"a stranger"
STRANGER = "blobs/sha256/" + digest_of(BLOB).removeprefix("sha256:")

HOSTILE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("absolute", with_member(plain("/etc/cron.d/x", b"x")), "absolute"),
    ("absolute blob", with_member(plain(f"/{STRANGER}", BLOB)), "absolute"),
    ("dots", with_member(plain("../x", b"x")), "leads out"),
    ("dots inside", with_member(plain("blobs/sha256/../../x", b"x")), "leads out"),
    ("two dots in front", with_member(plain(f"././{STRANGER}", BLOB)), "no part of"),
    ("symbolic link", with_member(plain("blobs/x", type=tarfile.SYMTYPE, linkname="/etc")), "link"),
    ("hard link", with_member(plain("x", type=tarfile.LNKTYPE, linkname="index.json")), "link"),
    ("link for a folder", with_member(plain("blobs", type=tarfile.SYMTYPE)), "link"),
    ("character device", with_member(plain("x", type=tarfile.CHRTYPE)), "device"),
    ("block device", with_member(plain("x", type=tarfile.BLKTYPE)), "device"),
    ("pipe", with_member(plain("x", type=tarfile.FIFOTYPE)), "pipe"),
    ("contiguous file", with_member(plain("x", type=tarfile.CONTTYPE)), "reserved"),
    ("sparse", with_member(plain(STRANGER, BLOB, type=tarfile.GNUTYPE_SPARSE)), "sparse"),
    ("pax header", with_member(plain("x", b"20 path=index.json\n", type=b"x")), "extended"),
    ("global header", with_member(plain("x", b"", type=b"g")), "extended"),
    ("long name", with_member(plain("x", b"y" * 200, type=b"L")), "long name"),
    ("unknown kind", with_member(plain("x", type=b"Z")), "unknown kind"),
    ("folder with content", with_member(plain("blobs", b"x", type=b"5")), "has content"),
    ("other folder", with_member(plain("etc", type=b"5")), "no part of"),
    ("unknown member", with_member(plain("README", b"x")), "no part of"),
    ("other algorithm", with_member(plain("blobs/sha512/" + "0" * 64, b"x")), "no part of"),
    ("capital digest", with_member(plain("blobs/sha256/" + "A" * 64, b"x")), "no part of"),
    ("not ascii", with_member(plain("blöbs", b"x")), "ASCII"),
    ("a blob twice", lambda content: content[:-1024] + content, "twice"),
    ("twice by another name", with_member(plain("./index.json", b"{}")), "twice"),
    ("folder twice", with_member(plain("blobs", type=b"5"), plain("blobs/", type=b"5")), "twice"),
    ("stranger's blob", with_member(plain(STRANGER, BLOB)), "needs"),
    ("wrong blob", with_member(plain(STRANGER, b"other")), "not what its name says"),
    ("huge size", with_huge_size, "octal|bytes"),
    ("binary size", with_binary_size, "octal"),
    ("many", with_many, "more than 512 members"),
    ("gzip", gzip.compress, "gzip"),
    ("bzip2", lambda content: b"BZh91AY&SY" + content, "bzip2"),
    ("xz", lambda content: b"\xfd7zXZ\0" + content, "xz"),
    ("zstd", lambda content: b"\x28\xb5\x2f\xfd" + content, "zstd"),
    ("zip", lambda content: b"PK\x03\x04" + content, "zip"),
    ("empty", lambda content: b"", "cut off"),
    ("only an end", lambda content: bytes(1024), "no oci-layout"),
    ("endless zeros", lambda content: content + bytes(2 << 20), "follows its end"),
    ("garbage at the end", lambda content: content + b"x", "follows its end"),
    ("second tar behind", lambda content: content + content, "follows its end"),
    ("no end", with_end(b""), "cut off"),
    ("half an end", with_end(bytes(512)), "cut off"),
    ("wrong end", with_end(bytes(512) + b"x" * 512), "its end"),
    ("cut in a blob", lambda content: content[:3000], "cut off"),
    ("wrong checksum", lambda content: b"x" + content[1:], "checksum"),
    ("old format", lambda content: old_format(content), "ustar"),
    ("padding used", lambda content: padding_used(content), "none of it"),
    ("no index", without("index.json"), "no index.json"),
    ("no layout", without("oci-layout"), "no oci-layout"),
    ("index is no JSON", changed("index.json", lambda _: b"{"), "index"),
    ("index is deep", changed("index.json", lambda _: b"[" * 100_000), "index"),
    ("index is huge", changed("index.json", lambda _: b" " * (2 << 20)), "more than"),
    ("index is a list", changed("index.json", lambda _: b"[]"), "index"),
    ("line is a number", in_index(lambda index: index["manifests"].append(1)), "index"),
    (
        "digest is a path",
        in_index(lambda index: index["manifests"][0].update(digest="../x")),
        "dig",
    ),
    ("other layout", changed("oci-layout", lambda _: b'{"imageLayoutVersion":"2"}'), "version"),
    ("no image", in_index(lambda index: index["manifests"].pop(0)), "0 images"),
    ("two images", in_index(lambda index: index["manifests"].append(index["manifests"][0])), "2"),
    ("no referrers", in_index(lambda index: index["manifests"].pop(1)), "needs"),
    (
        "list twice",
        in_index(lambda index: index["manifests"].append(index["manifests"][1])),
        "need",
    ),
    ("wrong size", in_index(lambda index: index["manifests"][0].update(size=1)), "size"),
    ("size is a text", in_index(lambda index: index["manifests"][0].update(size="1")), "size"),
    ("other tag", in_index(lambda index: index["manifests"][1].pop("annotations")), "not about"),
    (
        "tag is a list",
        in_index(lambda index: index["manifests"][1].update(annotations=[1])),
        "not about",
    ),
]


def old_format(content: bytes) -> bytes:
    header = bytearray(content[:512])
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def padding_used(content: bytes) -> bytes:
    """oci-layout comes first, and does not fill its block."""
    return content[:1000] + b"x" + content[1001:]


@pytest.mark.parametrize(
    ("make", "reason"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_a_hostile_tar_is_refused_and_leaves_nothing(
    exported: bytes, other: tuple[Store, Keys], make: Callable[[bytes], bytes], reason: str
) -> None:
    before = files(other[0].state_dir)
    with pytest.raises(ImageError, match=reason):
        take(other, make(exported))
    assert files(other[0].state_dir) == before
    assert not list(other[0].state_dir.glob(".new-*"))


def test_an_untrusted_and_a_revoked_key_are_refused(
    keys: Keys, exported: bytes, other: tuple[Store, Keys], tmp_path: Path
) -> None:
    stranger = Store.open(tmp_path / "stranger")
    theirs = Keys(stranger.state_dir)
    theirs.ensure()
    own = keys.own()
    assert own is not None
    with pytest.raises(ImageError, match=f"{own.short} is not trusted"):
        take((stranger, theirs), exported)
    other[1].revoke(own.id)
    with pytest.raises(ImageError, match=f"{own.short} is revoked"):
        take(other, exported)
    assert stranger.images() == other[0].images() == ()


def test_an_unsigned_image_is_refused(
    store: Store, exported: bytes, other: tuple[Store, Keys]
) -> None:
    (image,) = store.images()
    spec = dataclasses.replace(SPEC, app="shop")
    digest = store.add(spec, image.abi, image.code_layer, "1.2.3")
    with pytest.raises(ImageError, match="not signed"):
        take(other, tar_of(store, digest))


def test_a_forged_signature_beside_a_good_one_is_refused(
    store: Store, keys: Keys, exported: bytes, other: tuple[Store, Keys]
) -> None:
    """One that names a trusted key and is not its: somebody is at work."""
    (image,) = store.images()
    (good,) = signatures_of(store, image.digest)
    wrong = dataclasses.asdict(good) | {"signature": "A" * 86 + "=="}
    layer = (SIGNATURE_TYPE, canonical(wrong))
    forged = NewReferrer(artifact_type=SIGNATURE_TYPE, layers=(layer,))
    store.add_referrers(image.digest, [forged])
    check_signed(store, keys, image.digest)  # the good one is enough for what is here
    with pytest.raises(ImageError, match="the signature of the key"):
        take(other, tar_of(store, image.digest))


@pytest.mark.parametrize(
    "member",
    [
        plain("../x", b"x"),
        plain("/x", b"x"),
        plain("x", type=tarfile.SYMTYPE, linkname="/etc"),
        plain("x/", type=tarfile.DIRTYPE),
        plain(".hidden", b"x"),
    ],
    ids=lambda member: member[0].name,
)
def test_code_that_would_do_harm_when_unpacked_is_refused_though_it_is_signed(
    store: Store, keys: Keys, exported: bytes, other: tuple[Store, Keys],
    member: tuple[tarfile.TarInfo, bytes],
) -> None:  # fmt: skip
    (image,) = store.images()
    layer = store.put_blob(packed([member]))
    digest = store.add(SPEC, image.abi, layer, "1.2.3")
    sign_image(store, keys, digest)
    with pytest.raises(ImageError, match="code"):
        take(other, tar_of(store, digest))
    assert other[0].images() == ()


def test_a_document_that_is_too_large_is_refused_before_it_is_read(
    store: Store, keys: Keys, exported: bytes, other: tuple[Store, Keys],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(transfer, "MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(ImageError, match="more than 100 bytes"):
        take(other, exported)


def test_memory_is_bounded_by_a_piece_and_not_by_a_blob(exported: bytes) -> None:
    class Zeros:
        """A tar with one file of 64 MB, made as it is read."""

        def __init__(self) -> None:
            member, _ = plain("x")
            member.size = 64 << 20
            self.parts: Iterator[bytes] = iter([member.tobuf(tarfile.USTAR_FORMAT)])
            self.left = member.size + 1024

        def read(self, size: int) -> bytes:
            if part := next(self.parts, b""):
                assert size == len(part)
                return part
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    bounds = Bounds(members=2, member_bytes=1 << 30, total_bytes=1 << 30)
    tar = StrictTar(Zeros(), "x.tar", bounds)
    tracemalloc.start()
    try:
        total = 0
        for _ in tar.members():
            total += sum(len(chunk) for chunk in tar.content())
        assert total == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# --- any bytes --------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "zero", "copy"]),
              st.integers(0, 255)),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(edits=EDITS)
def test_any_bytes_are_a_good_import_or_an_image_error(
    exported: bytes, other: tuple[Store, Keys], edits: list[tuple[float, str, int]]
) -> None:
    """Whatever is done to a tar: the store stays sound, and holds the image as it was signed or
    nothing."""
    content = bytearray(exported)
    for where, kind, value in edits:
        at = int(where * (len(content) - 1)) if content else 0
        match kind:
            case "flip" if content:
                content[at] ^= value
            case "cut":
                del content[at : at + value * 8]
            case "insert":
                content[at:at] = bytes([value]) * (value or 512)
            case "zero":
                content[at : at + 512] = bytes(len(content[at : at + 512]))
            case "copy":
                content[at:at] = content[: value * 512]
    try:
        done = take(other, bytes(content))
    except ImageError:
        done = None
    account = verify_store(*other)
    assert account.is_sound
    if done is not None:
        assert tar_of(other[0], done.image.digest) == exported


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=4096))
def test_noise_is_an_image_error(other: tuple[Store, Keys], content: bytes) -> None:
    with pytest.raises(ImageError):
        take(other, content)
    assert not list(other[0].state_dir.glob(".new-*"))


# --- a list that somebody fills ----------------------------------------------------------------


def relisted(content: bytes, change: Callable[[list[Any], dict[str, bytes]], None]) -> bytes:
    """The tar with another list of referrers; `change` gets the list, and may add blobs."""
    index = json.loads({member.name: body for member, body in unpacked(content)}["index.json"])
    old = index["manifests"][1]["digest"]
    blobs = {member.name: body for member, body in unpacked(content)}
    listed = json.loads(blobs.pop(f"blobs/sha256/{old.removeprefix('sha256:')}"))
    more: dict[str, bytes] = {}
    change(listed["manifests"], more)
    new = canonical(listed)
    index["manifests"][1] |= {"digest": digest_of(new), "size": len(new)}
    blobs["index.json"] = canonical(index)
    for body in (new, *more.values()):
        blobs[f"blobs/sha256/{digest_of(body).removeprefix('sha256:')}"] = body
    return packed([plain(name, body) for name, body in blobs.items()])


def signature_in_other_words(content: bytes, copies: int) -> bytes:
    """The one good signature, in the manifests of so many referrers."""
    blobs = {member.name: body for member, body in unpacked(content)}

    def change(lines: list[Any], more: dict[str, bytes]) -> None:
        digest = lines[0]["digest"].removeprefix("sha256:")
        manifest = json.loads(blobs[f"blobs/sha256/{digest}"])
        for copy in range(copies):
            body = canonical(manifest | {"annotations": {"copy": str(copy)}})
            more[str(copy)] = body
            lines.append(lines[0] | {"digest": digest_of(body), "size": len(body)})

    return relisted(content, change)


def test_the_same_signature_in_other_words_takes_no_room_here(
    exported: bytes, other: tuple[Store, Keys]
) -> None:
    """Nor by and by: whoever may sign nothing must not keep this host from signing."""
    for copies in (40, 41):
        take(other, signature_in_other_words(exported, copies))
        (entry,) = read_entries(other[0])
        assert len(entry.referrers) == 2
    assert verify_store(*other).is_sound
    assert sign_image(*other, entry.digest)
    assert len(signatures_of(other[0], entry.digest)) == 2


def test_a_list_that_names_one_referrer_twice_is_refused(
    exported: bytes, other: tuple[Store, Keys]
) -> None:
    many = relisted(exported, lambda lines, _: lines.extend(lines * 1000))
    with pytest.raises(ImageError, match="lists something twice"):
        take(other, many)


def test_a_list_that_leaves_no_room_for_this_host_is_refused(
    store: Store, exported: bytes, other: tuple[Store, Keys], tmp_path: Path
) -> None:
    """Of keys that are all trusted here."""
    (image,) = store.images()
    for number in range(MAX_REFERRERS - transfer.OWN_REFERRERS - 1):
        signer = Keys(tmp_path / str(number))
        made = signer.ensure()
        assert made is not None
        other[1].trust(made)
        signature = dataclasses.asdict(signatures_of(store, image.digest)[0])
        said = f"dataplane signature v1\nimage\n{image.digest}\n{image.digest}\n"
        _, signed = signer.sign(said.encode())
        signature |= {"keyid": made.id, "signature": base64.b64encode(signed).decode()}
        layer = (SIGNATURE_TYPE, canonical(signature))
        store.add_referrers(
            image.digest, [NewReferrer(artifact_type=SIGNATURE_TYPE, layers=(layer,))]
        )
    with pytest.raises(ImageError, match="too much is listed"):
        take(other, tar_of(store, image.digest))
    assert other[0].images() == ()


def test_an_image_never_chooses_the_tag_by_which_lists_are_found(
    store: Store, keys: Keys, exported: bytes, other: tuple[Store, Keys]
) -> None:
    """Else it could stand where another image's signatures are looked for."""
    (victim,) = store.images()
    manifest = json.loads(store.get(victim.digest))
    spec = dataclasses.replace(SPEC, app="shop")
    config = store.put_blob(spec.to_json())
    manifest["layers"][0] |= {"digest": config, "size": len(spec.to_json())}
    manifest["annotations"] |= {
        APP_ANNOTATION: "shop",
        TAG_ANNOTATION: referrers_tag(victim.digest),
    }
    raw = canonical(manifest)
    wicked = store.put_blob(raw)
    index = read_index(store)
    line = index["manifests"][0] | {"digest": wicked, "size": len(raw)}
    write_index(store, index | {"manifests": [*index["manifests"], line]})
    sign_image(store, keys, wicked)
    take(other, tar_of(store, wicked))
    take(other, exported)
    assert check_signed(*other, victim.digest)
    assert verify_store(*other).is_sound
    assert len(other[0].images()) == 2


def test_a_manifest_is_smaller_than_other_documents(
    exported: bytes, other: tuple[Store, Keys]
) -> None:
    """A few bytes of JSON are many in memory, so little of it is read before anybody signed it."""
    wide = relisted(exported, lambda lines, _: lines[0].update(x=[[]] * 400_000))
    with pytest.raises(ImageError, match=f"more than {transfer.MAX_MANIFEST_BYTES} bytes"):
        take(other, wide)


# --- links and pipes in the store --------------------------------------------------------------


def blob_files(store: Store) -> list[Path]:
    return sorted((store.folder / "blobs" / "sha256").iterdir())


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_plain_file_is_never_read_as_a_blob(
    store: Store, keys: Keys, exported: bytes, tmp_path: Path, kind: str
) -> None:
    """A link's content is right while it is read, and another afterwards; a pipe never ends."""
    (image,) = store.images()
    path = store.blob_path(image.digest)
    content = path.read_bytes()
    aside = tmp_path / "aside"
    path.rename(aside)
    if kind == "link":
        path.symlink_to(aside)
    else:
        os.mkfifo(path)
    with pytest.raises(ImageError, match="cannot read"):
        store.get(image.digest)
    with pytest.raises(ImageError):
        tar_of(store, image.digest)
    assert not verify_store(store, keys).is_sound
    take((store, keys), exported)  # heals it
    assert path.is_file()
    assert not path.is_symlink()
    assert store.get(image.digest) == content


def test_a_link_is_replaced_by_the_blob_and_what_it_leads_to_is_left_alone(
    store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"content")
    path = store.blob_path(digest_of(b"content"))
    path.symlink_to(target)
    store.put_blob(b"content")
    assert not path.is_symlink()
    assert target.read_bytes() == b"content"


def test_imports_and_prunes_at_once_leave_nothing_half_there(
    exported: bytes, other: tuple[Store, Keys]
) -> None:
    """Whatever is taken is whole or gone: a blob that was here before is not pruned meanwhile."""
    rounds = 12
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        imports = [threads.submit(take, other, exported) for _ in range(rounds)]
        prunes = [threads.submit(prune, other[0], keep=0) for _ in range(rounds)]
        assert all(one.result().image for one in imports)
        assert all(one.result() for one in prunes)
        assert verify_store(*other).is_sound
        take(other, exported)
    account = verify_store(*other)
    assert account.is_sound
    assert (len(account.images), account.unneeded) == (1, 0)
    assert not list(other[0].state_dir.glob(".new-*"))


def with_referrer(content: bytes, **changes: Any) -> bytes:
    """The tar with one referrer more: the signature's, with other fields in its manifest."""
    blobs = {member.name: body for member, body in unpacked(content)}

    def change(lines: list[Any], more: dict[str, bytes]) -> None:
        digest = lines[0]["digest"].removeprefix("sha256:")
        manifest = json.loads(blobs[f"blobs/sha256/{digest}"]) | changes
        more["it"] = body = canonical(manifest)
        lines.append(lines[0] | {"digest": digest_of(body), "size": len(body)})

    return relisted(content, change)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject": {"digest": "sha256:" + "0" * 64, "size": 1}}, "is about another"),
        ({"subject": None}, "is about another"),
        ({"subject": {"digest": "../x", "size": 1}}, "is not a manifest"),
        ({"artifactType": "application/x"}, "of an unknown kind"),
        ({"artifactType": IMAGE_TYPE}, "of an unknown kind"),
        ({"layers": []}, "is no signature"),
        ({"layers": [{"digest": "sha256:" + "0" * 64, "size": 1}]}, "is missing"),
    ],
)
def test_a_referrer_that_is_not_what_it_is_listed_as_is_refused(
    exported: bytes, other: tuple[Store, Keys], changes: dict[str, Any], reason: str
) -> None:
    """Beside a good signature, which must not carry it in."""
    before = files(other[0].state_dir)
    with pytest.raises(ImageError, match=reason):
        take(other, with_referrer(exported, **changes))
    assert files(other[0].state_dir) == before


def test_a_signature_is_no_provenance_and_provenance_no_signature(
    store: Store, keys: Keys, exported: bytes, other: tuple[Store, Keys]
) -> None:
    """Their statements differ, so that a good one of one kind is a wrong one of the other."""
    (image,) = store.images()
    told = next(one for one in referrers_of(store, image.digest) if len(one.layers) == 2)
    layer = (SIGNATURE_TYPE, store.get(told.layers[1]))
    store.add_referrers(image.digest, [NewReferrer(artifact_type=SIGNATURE_TYPE, layers=(layer,))])
    with pytest.raises(ImageError, match=r"the signature of the key \w+ is wrong"):
        take(other, tar_of(store, image.digest))
