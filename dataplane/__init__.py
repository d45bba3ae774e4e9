"""dataplane: a reverse proxy whose apps run from sealed images and are swapped under load.

This module holds the version and nothing else; it must never import anything, because every
process of the program, the sealed workers included, begins by loading it.
"""

from __future__ import annotations

__version__ = "0.1.0"
