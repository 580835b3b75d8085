"""The endpoint connector: objects are held by the daemons of sites, see `proxyplane.endpoint`."""

from __future__ import annotations

from proxyplane.connectors.endpoint.connector import EndpointConnector as EndpointConnector

__all__ = ["EndpointConnector"]
