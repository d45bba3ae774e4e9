"""`python -m dataplane` is the command `dataplane`; nothing else may live here."""

from __future__ import annotations

import sys

from dataplane.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
