"""Python objects travel between processes as small proxies; asyncio first."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from proxyplane import exceptions as exceptions
from proxyplane import sync as sync
from proxyplane._gather import gather as gather
from proxyplane._gather import prefetch as prefetch
from proxyplane._progress import progress_bar as progress_bar
from proxyplane.abc import Connector as Connector
from proxyplane.abc import DeferrableConnector as DeferrableConnector
from proxyplane.abc import Factory as Factory
from proxyplane.abc import Serializer as Serializer
from proxyplane.config import StoreConfig as StoreConfig
from proxyplane.config import register_connector as register_connector
from proxyplane.exceptions import BlockingResolveWarning as BlockingResolveWarning
from proxyplane.exceptions import ProxyPlaneError as ProxyPlaneError
from proxyplane.exceptions import ProxyResolveError as ProxyResolveError
from proxyplane.factory import RedisFactory as RedisFactory
from proxyplane.factory import StoreFactory as StoreFactory
from proxyplane.future import ProxyFuture as ProxyFuture
from proxyplane.future import as_completed as as_completed
from proxyplane.future import wait as wait
from proxyplane.proxy import Proxy as Proxy
from proxyplane.proxy import ProxyLocker as ProxyLocker
from proxyplane.proxy import ProxyOr as ProxyOr
from proxyplane.proxy import aevict as aevict
from proxyplane.proxy import aextract as aextract
from proxyplane.proxy import aresolve as aresolve
from proxyplane.proxy import evict as evict
from proxyplane.proxy import extract as extract
from proxyplane.proxy import get_factory as get_factory
from proxyplane.proxy import get_key as get_key
from proxyplane.proxy import get_size as get_size
from proxyplane.proxy import is_resolved as is_resolved
from proxyplane.proxy import resolve as resolve
from proxyplane.proxy import resolve_async as resolve_async
from proxyplane.registry import ato_proxy as ato_proxy
from proxyplane.registry import get_or_create_store as get_or_create_store
from proxyplane.registry import get_store as get_store
from proxyplane.registry import register_store as register_store
from proxyplane.registry import set_default_store as set_default_store
from proxyplane.registry import store_registration as store_registration
from proxyplane.registry import to_proxy as to_proxy
from proxyplane.registry import unregister_store as unregister_store
from proxyplane.store import Store as Store

if TYPE_CHECKING:
    from proxyplane.connectors.endpoint import EndpointConnector as EndpointConnector
    from proxyplane.connectors.file import FileConnector as FileConnector
    from proxyplane.connectors.local import LocalConnector as LocalConnector
    from proxyplane.connectors.multi import MultiConnector as MultiConnector
    from proxyplane.connectors.redis import RedisConnector as RedisConnector
    from proxyplane.executor import StoreExecutor as StoreExecutor
    from proxyplane.executor import StoreTaskGroup as StoreTaskGroup
    from proxyplane.lifetimes import ContextLifetime as ContextLifetime
    from proxyplane.lifetimes import LeaseLifetime as LeaseLifetime
    from proxyplane.lifetimes import StaticLifetime as StaticLifetime
    from proxyplane.ownership import OwnedProxy as OwnedProxy
    from proxyplane.ownership import RefMutProxy as RefMutProxy
    from proxyplane.ownership import RefProxy as RefProxy
    from proxyplane.ownership import aclone as aclone
    from proxyplane.ownership import adrop as adrop
    from proxyplane.ownership import aupdate as aupdate
    from proxyplane.ownership import borrow as borrow
    from proxyplane.ownership import clone as clone
    from proxyplane.ownership import drop as drop
    from proxyplane.ownership import into_owned as into_owned
    from proxyplane.ownership import mut_borrow as mut_borrow
    from proxyplane.ownership import update as update
    from proxyplane.policies import ProxyAlways as ProxyAlways
    from proxyplane.policies import ProxyNever as ProxyNever
    from proxyplane.policies import ProxySize as ProxySize
    from proxyplane.policies import ProxyType as ProxyType

__version__ = "0.1.0"

# Imported when it is asked for: a connector with its driver, since redis alone takes longer than
# all the rest, and what is built on top of stores.
_LAZY = {
    "ContextLifetime": "proxyplane.lifetimes",
    "LeaseLifetime": "proxyplane.lifetimes",
    "StaticLifetime": "proxyplane.lifetimes",
    "EndpointConnector": "proxyplane.connectors.endpoint",
    "FileConnector": "proxyplane.connectors.file",
    "LocalConnector": "proxyplane.connectors.local",
    "MultiConnector": "proxyplane.connectors.multi",
    "RedisConnector": "proxyplane.connectors.redis",
    "OwnedProxy": "proxyplane.ownership",
    "RefMutProxy": "proxyplane.ownership",
    "RefProxy": "proxyplane.ownership",
    "aclone": "proxyplane.ownership",
    "adrop": "proxyplane.ownership",
    "aupdate": "proxyplane.ownership",
    "borrow": "proxyplane.ownership",
    "clone": "proxyplane.ownership",
    "drop": "proxyplane.ownership",
    "into_owned": "proxyplane.ownership",
    "mut_borrow": "proxyplane.ownership",
    "update": "proxyplane.ownership",
    "StoreExecutor": "proxyplane.executor",
    "StoreTaskGroup": "proxyplane.executor",
    "ProxyAlways": "proxyplane.policies",
    "ProxyNever": "proxyplane.policies",
    "ProxySize": "proxyplane.policies",
    "ProxyType": "proxyplane.policies",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that the next look-up is an ordinary one.
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
