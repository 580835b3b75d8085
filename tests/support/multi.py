"""Multi-connectors to look into."""

from __future__ import annotations

from proxyplane import LocalConnector, MultiConnector
from proxyplane.connectors.multi import Policy
from proxyplane.testing import Recorder

# Nothing listens there: to connect is an error.
NO_SERVER = "redis://127.0.0.1:1/0"
ELSEWHERE = Policy(host_pattern="no-such-host-.*")


def recorders(**policies: Policy) -> tuple[MultiConnector, dict[str, Recorder]]:
    """A multi-connector of one recorder for each policy, and the recorders."""
    made = {name: Recorder(LocalConnector()) for name in policies}
    multi = MultiConnector({name: (made[name], policy) for name, policy in policies.items()})
    return multi, made


def opened(multi: MultiConnector) -> set[str]:
    """Names of the connectors that were made."""
    return set(multi._parts._made)
