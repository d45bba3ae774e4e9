"""What a secret may be, and how contents are told apart without being told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.model.errors import LaunchError
from dataplane.supervisor.secrets import Secrets

# In a child: reading a secret makes the process undumpable for good.
READ = """
import sys
from pathlib import Path
from dataplane.model.errors import LaunchError
from dataplane.supervisor.secrets import Secrets
try:
    print(Secrets(Path(sys.argv[1])).read(sys.argv[2], {"TOKEN": "from-variable"}))
except LaunchError as error:
    print("refused:", error)
    sys.exit(1)
with open("/proc/self/limits") as limits:
    core = [line.split()[4] for line in limits if line.startswith("Max core")]
print(core[0])
"""


def read(state: Path, reference: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", READ, str(state), reference],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    return ended.stdout.splitlines()


def test_file_is_read_without_its_last_line_break(tmp_path: Path) -> None:
    for content in ("a token", "a token\n", "a token\r\n"):
        (tmp_path / "token").write_text(content, newline="")
        assert read(tmp_path, f"file:{tmp_path}/token") == ["a token", "0"]


def test_variable_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "env:TOKEN") == ["from-variable", "0"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"two\nlines\n", "byte 4 is not printable ASCII"),
        (b"t\xc3\xa4", "byte 2 is not printable ASCII"),
        (b" x", "begins or ends with a space"),
        (b"y" * 5000, "is longer than 4096 bytes"),
    ],
)
def test_content_that_no_header_takes_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "token").write_bytes(content)
    (line,) = read(tmp_path, f"file:{tmp_path}/token")
    assert line.startswith("refused: ")
    assert reason in line
    assert "lines" not in line


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (line,) = read(tmp_path, f"file:{tmp_path}/pipe")
    assert "is not a file" in line
    (line,) = read(tmp_path, f"file:{tmp_path}/missing")
    assert "cannot be read: No such file" in line
    (line,) = read(tmp_path, "env:OTHER")
    assert "env:OTHER is not set" in line


def test_digest_is_the_same_for_the_same_content_on_one_host_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    contents = (("env:A", "one"), ("env:B", "two"), ("env:C", "one"))
    (_, first), (_, second), (_, third) = Secrets(tmp_path / "here").digests(contents)
    assert first == third != second
    again = Secrets(tmp_path / "here")
    assert again.digests(contents)[0] == ("env:A", first)
    assert Secrets(tmp_path / "there").digests(contents)[0] != ("env:A", first)
    assert (tmp_path / "here" / "secrets.key").stat().st_mode & 0o777 == 0o600


def test_key_that_was_cut_short_is_drawn_anew(tmp_path: Path) -> None:
    (tmp_path / "secrets.key").write_bytes(b"short")
    assert len(Secrets(tmp_path).digests((("env:A", "one"),))[0][1]) == 64
    assert len((tmp_path / "secrets.key").read_bytes()) == 32


def test_state_folder_that_takes_no_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"secrets\.key|missing"):
        Secrets(tmp_path / "missing").digests((("env:A", "one"),))
