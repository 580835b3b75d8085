"""``proxyplane demo``: one job, done with and without proxies, measured and checked.

A producer sends arrays to worker processes through a task queue, and each worker computes
something from what it receives: first the arrays themselves travel through the queue, then only
proxies of them do.

- ``data``: the arrays, photographs or the user's files
- ``work``: what workers compute; knows nothing of proxies
- ``pool``: the workers, and the queue that counts its bytes
- ``compare``: both ways, in turn, timed
- ``report``: what is shown
- ``command``: puts them together; setting up, errors and clean-up
"""

from __future__ import annotations

from proxyplane.demo.command import Options as Options
from proxyplane.demo.command import run as run
