"""The local connector: objects in the memory of one process, over ``local://``."""

from __future__ import annotations

from proxyplane.connectors.local.connector import LocalConnector as LocalConnector

__all__ = ["LocalConnector"]
