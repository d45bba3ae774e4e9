"""Whatever a file holds, it is a spec or findings with places in the file: never anything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.image.config import load_app
from dataplane.model.errors import ConfigError, Finding
from dataplane.model.names import AppName
from dataplane.model.spec import AppSpec

ROOT: Final = Path(__file__).resolve().parents[3]
SOUND: Final = [
    (ROOT / "configs" / "apps" / f"{name}.yaml").read_bytes()
    for name in ("billing", "database", "shop")
]
SCRAPS: Final = [
    b"&a ", b"*a", b"!!str ", b"? ", b": ", b"- ", b"[", b"]", b"{", b"}", b"'", b'"', b"|\n",
    b">\n", b"#", b"\t", b"\n", b"---\n", b"...\n", b"<<: *a\n", b"${A}", b"$${", b"${", b"~",
    b"null", b"0x1", b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80",
    b'"\\ud800"', b"%YAML 1.1\n", b"unix:/x", b"[::1]:80", b"core: x", b"1e9",
    b"99999999999999999999", b"-1", b"5s", b"16KiB", b"tcp",
]  # fmt: skip
ENVIRONMENT: Final = {"A": "1", "B": "x\udcff\n"}

anything = st.binary(max_size=200)
yaml_like = st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=4), max_size=30).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound file in which pieces were cut out, doubled or replaced."""
    text = draw(st.sampled_from(SOUND))
    text = re.sub(rb"(?m)^#.*\n| +#.*$", b"", text)  # comments would take most of the damage
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from([*SCRAPS, b"", text[at:end] * 2]))
        text = text[:at] + piece + text[end:]
    return text


@pytest.mark.slow
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.one_of(anything, yaml_like, damaged(), damaged()))
def test_any_bytes_are_a_spec_or_findings(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "apps" / "billing.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    findings: tuple[Finding, ...] = ()
    try:
        spec = load_app(tmp_path, AppName("billing"), ENVIRONMENT)
    except ConfigError as error:
        findings = error.findings
    else:
        assert AppSpec.from_json(spec.to_json()) == spec
        assert spec.app == "billing"
        return
    assert findings
    lines = len(re.split(rb"\r\n|[\r\n\x85\x0b\x0c]|\xe2\x80[\xa8\xa9]", data))
    for finding in findings:
        assert finding.path == str(path)
        assert 0 <= finding.line <= lines + 1
        assert finding.message
        assert "\n" not in finding.message
        str(finding).encode()
