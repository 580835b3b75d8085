"""Tools for those who write a connector: its conformance suite, and wrappers that misbehave.

Needs pytest, pytest-asyncio and Hypothesis: ``pip install "proxyplane[testing]"``. Nothing else in
the package imports this module.
"""

from __future__ import annotations

import pytest

# Before they are imported: their asserts then show the values, as those of a test file do.
pytest.register_assert_rewrite(
    *(
        f"proxyplane.testing.{name}"
        for name in (
            "_buffers",
            "_cancelling",
            "_deferring",
            "_leases",
            "_lifecycle",
            "_naming",
            "_objects",
            "_races",
        )
    ),
    "proxyplane.testing.stateful",
)

from proxyplane.testing.conformance import ConnectorTests as ConnectorTests  # noqa: E402
from proxyplane.testing.faults import CoroutinesOnly as CoroutinesOnly  # noqa: E402
from proxyplane.testing.faults import FailingConnector as FailingConnector  # noqa: E402
from proxyplane.testing.faults import Recorder as Recorder  # noqa: E402
from proxyplane.testing.faults import SlowConnector as SlowConnector  # noqa: E402
from proxyplane.testing.faults import Wrapper as Wrapper  # noqa: E402
from proxyplane.testing.stateful import ConnectorMachine as ConnectorMachine  # noqa: E402
from proxyplane.testing.stateful import StoreMachine as StoreMachine  # noqa: E402
from proxyplane.testing.steps import cancelled_at as cancelled_at  # noqa: E402
from proxyplane.testing.steps import in_forked_child as in_forked_child  # noqa: E402
