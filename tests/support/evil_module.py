"""A module that leaves a trace when it is imported, as that of an attacker's serialiser would."""

from __future__ import annotations

import os

open(os.environ["EVIL_TRACE"], "w").close()
