"""LocalConnector: objects that come later, where it differs from the other media."""

from __future__ import annotations

import asyncio

import pytest

from proxyplane.connectors.local import LocalConnector
from proxyplane.exceptions import WrongProcessError
from proxyplane.testing import in_forked_child
from support.waiting import LONG, nobody_waits


@pytest.fixture
def connector():
    made = LocalConnector()
    yield made
    assert made._medium is None or nobody_waits(made._medium.waiters)


def test_another_process(connector):
    """In a forked child nobody waits, every call is refused, and the parent is not disturbed."""

    async def parent():
        key = await connector.new_key()
        waiting = asyncio.ensure_future(connector.wait(key, LONG))
        await asyncio.sleep(0)

        def child():
            raised = []
            for call in (connector.new_key(), connector.set(key, [b"x"]), connector.wait(key, 1)):
                try:
                    call.send(None)
                except WrongProcessError as error:
                    raised.append(type(error).__name__)
            waiters = connector._medium.waiters
            try:
                connector.aclose(clear=True).send(None)
            except StopIteration:
                pass
            return raised, waiters.names()

        assert in_forked_child(child) == (["WrongProcessError"] * 3, [])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await connector.set(key, [b"x"])
        await waiting

    asyncio.run(parent())
