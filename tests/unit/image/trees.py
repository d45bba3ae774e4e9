"""A package tree that looks installed, for tests that build images without the real code."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SOURCES: Final = {
    "__init__.py": '__version__ = "1.2.3"\n',
    "__main__.py": "not a worker's\n",
    "cli/main.py": "not a worker's\n",
    "supervisor/fleet.py": "not a worker's\n",
    "image/build.py": "not a worker's\n",
    "control/__init__.py": "",
    "control/channel.py": "channel\n",
    "control/messages.py": "messages\n",
    "control/move.py": "move\n",
    "control/move_frames.py": "frames\n",
    "control/http.py": "not a worker's\n",
    "engine/__init__.py": "",
    "engine/_build.py": "at build time only\n",
    "engine/_native.abi3.so": "\x7fELF\n",
    "engine/_native.pyi": "a stub\n",
    "engine/engine.py": "engine\n",
    "engine/__pycache__/engine.cpython-311.pyc": "bytecode\n",
    "model/__init__.py": "",
    "model/spec.py": "spec\n",
    "system/__init__.py": "",
    "worker/__init__.py": "",
    "worker/zygote.py": "zygote\n",
    "worker/tests/test_zygote.py": "a test\n",
}


def make_package(root: Path) -> Path:
    """Writes the tree below root and returns root, which is its package_root."""
    for name, text in SOURCES.items():
        path = root / "dataplane" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
