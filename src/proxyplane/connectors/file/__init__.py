"""The file connector: objects are files of a directory, over ``file://``."""

from __future__ import annotations

from proxyplane.connectors.file.connector import FileConnector as FileConnector

__all__ = ["FileConnector"]
