"""The multi connector: several connectors behind one, over ``multi:``."""

from __future__ import annotations

from proxyplane._policies import Policy as Policy
from proxyplane.connectors.multi.connector import MultiConnector as MultiConnector

__all__ = ["MultiConnector", "Policy"]
