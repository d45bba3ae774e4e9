"""Makes a copy of the tree ready for end-to-end tests on a sanitised engine: TREE LIBASAN VENV.

The copy gets an environment of its own, whose Python is found where a supervisor looks for the one
that a zygote becomes: a script that loads the address sanitiser before anything else, since a
zygote is started with an empty environment. What the product says and does is the same, but for
one rule of the seal: the sanitiser's malloc grows in place, by mmap with MAP_FIXED.

Run by `make san-e2e`; no test imports it.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

PYTHONS: Final = (
    os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    # What tests fall back to that run as nobody.
    os.path.realpath(f"/usr/bin/python3.{sys.version_info.minor}"),
)
# The worker's own options: what it reports ends it, by a signal that the supervisor tells.
OPTIONS: Final = "detect_leaks=0:abort_on_error=1"

RULE: Final = '"mmap": _no_bits(2, _PROT_EXEC, EPERM, then=_no_bits(3, _MAP_FIXED, EPERM)),'
RELAXED: Final = '"mmap": _no_bits(2, _PROT_EXEC, EPERM),'

CUSTOMISE: Final = """\
import os
import sys

_real = os.path.realpath(sys._base_executable)
_ours = os.path.join({folder!r}, _real.replace("/", "_"))
if os.path.exists(_ours):
    sys._base_executable = _ours
"""
SCRIPT: Final = """\
#!/bin/sh
LD_PRELOAD={library}
ASAN_OPTIONS={options}
UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS
exec {python} "$@"
"""


def main(tree: Path, library: str, venv: Path) -> None:
    relax_seal(tree / "dataplane" / "system" / "bpf.py")
    write_pythons(tree / "pythons", library)
    copy_venv(venv, tree)


def relax_seal(path: Path) -> None:
    """Takes the one rule away; fails where it is written in another way."""
    text = path.read_text()
    if text.count(RULE) != 1:
        raise SystemExit(f"{path}: the rule of mmap is not as {__file__} knows it: mend RULE there")
    path.write_text(text.replace(RULE, RELAXED))


def write_pythons(folder: Path, library: str) -> None:
    """A script for each interpreter, named after it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for python in PYTHONS:
        path = folder / python.replace("/", "_")
        path.write_text(SCRIPT.format(library=library, options=OPTIONS, python=python))
        path.chmod(0o755)


def copy_venv(venv: Path, tree: Path) -> None:
    """The same packages, by hard links; the package itself is the tree's."""
    copy = tree / ".venv"
    shutil.rmtree(copy, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__editable__*", "stamps")
    shutil.copytree(venv, copy, symlinks=True, ignore=unwanted, copy_function=link)
    site = copy / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "tree.pth").write_text(f"{tree}\n")
    (site / "sitecustomize.py").write_text(CUSTOMISE.format(folder=str(tree / "pythons")))
    command = copy / "bin" / "dataplane"
    text = command.read_text().replace(str(venv), str(copy))
    command.unlink()  # it is a link to the other environment's
    command.write_text(text)
    command.chmod(0o755)


def link(source: str, target: str) -> str:
    """As shutil.copy2 is called; a symbolic link stays one."""
    os.link(source, target, follow_symlinks=False)
    return target


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2], Path(sys.argv[3]).absolute())
