"""The tests on a sanitised engine: whether they run on one, and what it reported.

`make san` and `make san-e2e` load the address sanitiser into this process and into every zygote, so
into every worker. A sealed worker can open no file: its report goes where its stderr goes.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

import pytest

SANITISED: Final = "libasan" in os.environ.get("LD_PRELOAD", "")
# By how much longer anything may take: checked code, and each start of a process.
PATIENCE: Final = 3 if SANITISED else 1

# A report's first line, of either sanitiser; or a death that a process brings on itself, by the
# supervisor's word. Nobody sends these on purpose.
_FAULT: Final = re.compile(
    r"^.*(?:ERROR: AddressSanitizer|AddressSanitizer CHECK failed|: runtime error: "
    r"|killed by SIG(?:ABRT|BUS|FPE|ILL|SEGV)\b)",
    re.MULTILINE,
)
_REPORT_CHARACTERS: Final = 6000
# A step of a call stack within the engine, as a process tells it that cannot read its own symbols.
_STEP: Final = re.compile(r"\((/\S+/_native\S*\.so)\+(0x[0-9a-f]+)\)")


def measures(what: str) -> pytest.MarkDecorator:
    """Of a test that means nothing on a sanitised engine, since it measures this."""
    return pytest.mark.skipif(SANITISED, reason=f"a sanitised engine has other {what}")


def fault_told(text: str) -> str | None:
    """The first report of a sanitiser in what a process wrote, or word of a worker that crashed."""
    found = _FAULT.search(text)
    if found is None:
        return None
    return _STEP.sub(_named, text[found.start() : found.start() + _REPORT_CHARACTERS])


def _named(step: re.Match[str]) -> str:
    """The step with function, file and line: the image's library holds them."""
    command = ("addr2line", "-f", "-p", "-e", step[1], step[2])
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{told.stdout.strip() or step[1]} {step[2]}"
