"""``python -m proxyplane`` is the command ``proxyplane``."""

from __future__ import annotations

import sys

from proxyplane.cli import main

# Worker processes import this module again, under another name.
if __name__ == "__main__":
    sys.exit(main())
