"""The code layer: what is in it, that its bytes depend on nothing else, and safe unpacking."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.image import code
from dataplane.image.build import build_image
from dataplane.image.code import code_files, code_version, pack_code, put_code, unpack_code
from dataplane.image.store import Store
from dataplane.model.errors import ImageError
from dataplane.model.names import Digest
from tests.unit.image.trees import make_package
from tests.unit.model.test_spec import SPEC


def names(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getnames()


def test_the_layer_has_what_a_worker_needs_and_nothing_else(package_root: Path) -> None:
    found = names(pack_code(code_files(package_root)))
    assert found == sorted(found)
    ours = [name.removeprefix("dataplane/") for name in found if name.startswith("dataplane/")]
    assert ours == [
        "__init__.py",
        "control/__init__.py", "control/channel.py", "control/messages.py", "control/move.py",
        "control/move_frames.py",
        "engine/__init__.py", "engine/_native.abi3.so", "engine/engine.py",
        "model/__init__.py", "model/spec.py",
        "system/__init__.py",
        "worker/__init__.py", "worker/zygote.py",
    ]  # fmt: skip
    others = [name for name in found if not name.startswith("dataplane/")]
    assert len(others) == 1
    assert others[0].startswith("_cffi_backend.")


def test_uvloop_goes_along_with_its_compiled_part(
    package_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_THIRD_PARTY", ("uvloop",))
    found = [name for name in code_files(package_root) if name.startswith("uvloop/")]
    assert "uvloop/__init__.py" in found
    assert any(name.startswith("uvloop/loop.") and name.endswith(".so") for name in found)
    assert all(name.endswith((".py", ".so")) for name in found)
    assert "uvloop/_testbase.py" not in found


def test_nothing_of_time_owner_or_mode_is_in_the_layer(package_root: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_code(code_files(package_root)))) as tar:
        for member in tar:
            told = (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
            assert told == (0, 0, 0, "", "", 0o444)


def test_another_folder_and_another_day_give_the_same_layer(
    tmp_path: Path, package_root: Path
) -> None:
    other = make_package(tmp_path / "a" / "longer" / "path")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert pack_code(code_files(other)) == pack_code(code_files(package_root))


def test_a_build_is_the_same_image_from_another_folder_and_state(
    tmp_path: Path, package_root: Path, store: Store
) -> None:
    other = Store.open(tmp_path / "other-state")
    moved = make_package(tmp_path / "moved")
    assert build_image(store, SPEC, package_root) == build_image(other, SPEC, moved)


def test_a_change_of_the_code_is_another_image(package_root: Path, store: Store) -> None:
    first = build_image(store, SPEC, package_root)
    (package_root / "dataplane" / "worker" / "zygote.py").write_text("other\n")
    second = build_image(store, SPEC, package_root)
    assert store.image(first).code_layer != store.image(second).code_layer
    assert store.image(first).config_layer == store.image(second).config_layer


def test_a_change_of_the_supervisor_is_no_other_image(package_root: Path, store: Store) -> None:
    first = build_image(store, SPEC, package_root)
    (package_root / "dataplane" / "supervisor" / "fleet.py").write_text("other\n")
    (package_root / "dataplane" / "engine" / "_build.py").write_text("other\n")
    assert build_image(store, SPEC, package_root) == first


def test_the_second_build_packs_nothing(
    package_root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = put_code(store, package_root)

    def never(_files: dict[str, Path]) -> bytes:
        raise AssertionError("packed again")

    monkeypatch.setattr(code, "pack_code", never)
    assert put_code(store, package_root) == layer


@pytest.mark.parametrize("damage", ["missing", "changed", "memo"])
def test_what_is_remembered_is_not_believed_when_the_store_says_otherwise(
    package_root: Path, store: Store, damage: str
) -> None:
    layer = put_code(store, package_root)
    path = store.blob_path(layer)
    match damage:
        case "missing":
            path.unlink()
        case "changed":
            content = bytearray(path.read_bytes())
            content[600] ^= 1
            told = path.stat()
            path.chmod(0o644)
            path.write_bytes(content)
            os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
        case "memo":
            (store.state_dir / "code-layer.json").write_bytes(b'{"inputs": []')
    assert put_code(store, package_root) == layer
    assert names(store.get(layer))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dataplane/engine/_native.abi3.so", "the C library .* was not built; run `make setup`"),
        ("dataplane/control/move.py", "lacks dataplane/control/move.py"),
        ("dataplane/__init__.py", "lacks dataplane/__init__.py"),
    ],
)
def test_an_incomplete_package_is_told(
    package_root: Path, store: Store, name: str, told: str
) -> None:
    (package_root / name).unlink()
    with pytest.raises(ImageError, match=told):
        build_image(store, SPEC, package_root)
    assert store.digests() == ()


def test_a_missing_third_party_is_told(
    package_root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_THIRD_PARTY", ("no_such_package",))
    with pytest.raises(ImageError, match="no_such_package is not installed"):
        put_code(store, package_root)


def test_the_version_is_read_and_not_run(tmp_path: Path) -> None:
    make_package(tmp_path)
    assert code_version(tmp_path) == "1.2.3"
    (tmp_path / "dataplane" / "__init__.py").write_text("raise SystemExit\n")
    with pytest.raises(ImageError, match="does not say its version"):
        code_version(tmp_path)


# --- unpacking --------------------------------------------------------------------------------


def test_the_tree_is_the_layer_read_only(package_root: Path, store: Store) -> None:
    layer = put_code(store, package_root)
    tree = unpack_code(store, store.state_dir, layer)
    assert tree == store.state_dir / "code" / layer.removeprefix("sha256:")
    files = {str(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file()}
    assert sorted(files) == names(store.get(layer))
    assert files["dataplane/worker/zygote.py"].read_text() == "zygote\n"
    for path in (tree, *tree.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o555 if path.is_dir() else 0o444)


def test_a_tree_is_unpacked_once(package_root: Path, store: Store) -> None:
    layer = put_code(store, package_root)
    tree = unpack_code(store, store.state_dir, layer)
    inode = tree.stat().st_ino
    store.blob_path(layer).unlink()
    assert unpack_code(store, store.state_dir, layer).stat().st_ino == inode


def test_a_damaged_layer_is_not_unpacked(package_root: Path, store: Store) -> None:
    layer = put_code(store, package_root)
    path = store.blob_path(layer)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ImageError, match="is damaged"):
        unpack_code(store, store.state_dir, layer)
    assert not (store.state_dir / "code").exists()


def test_what_a_killed_unpacker_left_is_not_taken_for_a_tree(
    package_root: Path, store: Store
) -> None:
    layer = put_code(store, package_root)
    left = store.state_dir / "code" / ".new-abc"
    (left / "dataplane").mkdir(parents=True)
    left.chmod(0o555)
    tree = unpack_code(store, store.state_dir, layer)
    assert (tree / "dataplane" / "__init__.py").is_file()
    assert [path.name for path in tree.parent.iterdir()] == [tree.name]


def make_tar(add: Callable[[tarfile.TarFile], None]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        add(tar)
    return target.getvalue()


def empty_members(*names: str) -> bytes:
    def add(tar: tarfile.TarFile) -> None:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))

    return make_tar(add)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    told = tarfile.TarInfo(name)
    told.type, told.linkname = kind, link
    return make_tar(lambda tar: tar.addfile(told))


@pytest.mark.parametrize(
    "content",
    [
        member("/etc/passwd"),
        member("../x"),
        member("a/../../x"),
        member("./a"),
        member("a//b"),
        member(".hidden"),
        member("a\nb"),
        member("a", tarfile.SYMTYPE, "/etc/passwd"),
        member("a", tarfile.LNKTYPE, "b"),
        member("a", tarfile.FIFOTYPE),
        member("a", tarfile.CHRTYPE),
        member("a", tarfile.DIRTYPE),
        empty_members("a", "a"),
        empty_members(*(f"a{n}" for n in range(2001))),
        b"not a tar",
        b"",
    ],
)
def test_an_unsafe_layer_is_refused_and_leaves_nothing(store: Store, content: bytes) -> None:
    layer = store.put_blob(content)
    with pytest.raises(ImageError, match="code layer"):
        unpack_code(store, store.state_dir, layer)
    assert not (store.state_dir / "code").exists()


def test_a_file_in_the_place_of_a_folder_is_told(store: Store) -> None:
    layer = store.put_blob(empty_members("a", "a/b"))
    with pytest.raises(ImageError, match="cannot write"):
        unpack_code(store, store.state_dir, layer)
    assert list((store.state_dir / "code").iterdir()) == []


def test_what_is_no_digest_never_becomes_a_folder(store: Store) -> None:
    with pytest.raises(ImageError, match="is not a digest"):
        unpack_code(store, store.state_dir, Digest("sha256:../../etc"))


def test_the_package_may_go_after_the_build(package_root: Path, store: Store) -> None:
    digest = build_image(store, SPEC, package_root)
    shutil.rmtree(package_root)
    tree = unpack_code(store, store.state_dir, store.image(digest).code_layer)
    assert (tree / "dataplane" / "worker" / "zygote.py").is_file()


def test_a_sparse_member_is_refused_though_it_is_small_on_disk(store: Store) -> None:
    """It would unfold to a terabyte."""
    sparse = tarfile.TarInfo("bomb.py")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"00000000000\0"  # where its first piece lies, and how long it is
    header[398:410] = b"00000000000\0"
    header[483:495] = b"%011o\0" % (1 << 32)  # how large it says to be
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    layer = store.put_blob(bytes(header) + bytes(1024))
    with pytest.raises(ImageError, match=r"unsafe member 'bomb\.py'"):
        unpack_code(store, store.state_dir, layer)
