"""The suite that every connector passes: subclass `ConnectorTests` and say how to make one."""

from __future__ import annotations

from proxyplane.testing._cancelling import CancellationTests
from proxyplane.testing._deferring import DeferrableTests
from proxyplane.testing._leases import LeaseTests
from proxyplane.testing._lifecycle import (
    CloseTests,
    StoreTests,
    SyncTests,
    TroubleTests,
    UrlTests,
)
from proxyplane.testing._naming import NamesTests
from proxyplane.testing._objects import BatchTests, IsolationTests, ObjectTests
from proxyplane.testing._races import ForkTests, RaceTests

__all__ = ["ConnectorTests"]


class ConnectorTests(
    # pytest runs them from the last to the first.
    StoreTests,
    LeaseTests,
    NamesTests,
    DeferrableTests,
    SyncTests,
    TroubleTests,
    CancellationTests,
    ForkTests,
    RaceTests,
    CloseTests,
    UrlTests,
    BatchTests,
    IsolationTests,
    ObjectTests,
):
    """What `proxyplane.abc.Connector` promises, as tests.

    Subclass it, with a name that begins with ``Test``, and override:

    * the fixture ``connector``: returns the connector to test, on an empty medium. Keep in
      ``self`` what the helpers below need; each test has an instance of its own.
    * ``read_raw(key)``, ``write_raw(key, data)``, ``delete_raw(key)``: reach the medium behind
      the connector's back. They may block, are called in any thread, and only when a connector
      has been used, so that the medium exists.

    And where it applies:

    * ``count_raw()``: how many objects the medium holds. Shows that batches are all or none.
    * ``break_medium()``: makes the medium fail from then on. Shows that errors are translated.
    * ``second(connector)``: another connector on the same medium; by default the one that the
      URL describes, as in another process.
    * ``process_local = True``: no other process can reach the objects, by design.

    The class must be registered under the scheme of its URLs, by an entry point or by
    `proxyplane.register_connector`. Connectors with the shortcut of `SupportsSync`, those that are
    a `DeferrableConnector`, those that offer `SupportsNames`, and those whose medium keeps leases
    (`takes_ttl`), are tested for that as well.
    """
