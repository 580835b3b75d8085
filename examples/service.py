"""A web service over tables that it keeps in a store, not in its own memory.

Shows a store that lives as long as the service, `await store.get` in each request, many objects
at once with `gather`, and errors of the store as HTTP statuses. Nothing here blocks the event
loop: what computes goes to a thread.

    python examples/service.py                                        # files, no server needed
    python examples/service.py --store redis://localhost:6379/0       # shared by many services

    curl --data-binary @iris.csv localhost:8080/tables                # {"key": "5f0c...", ...}
    curl localhost:8080/tables/5f0c...                                # statistics of each column
    curl --data-binary @iris.csv -X PUT localhost:8080/tables/iris    # a key of your own
    curl localhost:8080/tables/iris/correlation/5f0c...               # column by column
    curl localhost:8080/tables
    curl -X DELETE localhost:8080/tables/iris
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from urllib.parse import quote

import pandas as pd
from aiohttp import web

from proxyplane import Connector, FileConnector, ProxyPlaneError, Store, gather
from proxyplane.exceptions import (
    ConnectorError,
    KeyExistsError,
    ObjectTooLargeError,
    ProxyResolveMissingKeyError,
    StoreFullError,
)

MAX_UPLOAD = 256 << 20  # bytes

STATUS: dict[type[Exception], int] = {  # the first that fits
    ProxyResolveMissingKeyError: 404,
    KeyExistsError: 409,
    ObjectTooLargeError: 413,
    StoreFullError: 507,
    ConnectorError: 503,
}

STORE = web.AppKey("STORE", Store)
CATALOGUE = web.AppKey("CATALOGUE", dict[str, dict[str, Any]])

log = logging.getLogger("service")
routes = web.RouteTableDef()


@routes.post("/tables")
@routes.put("/tables/{key}")
async def upload(request: web.Request) -> web.Response:
    """Keeps a CSV table, under a new key or under one that nobody has taken yet."""
    body = await request.read()
    try:
        table = await asyncio.to_thread(pd.read_csv, io.BytesIO(body))
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"not a CSV table: {error}") from error
    key = await request.app[STORE].put(table, key=request.match_info.get("key"), overwrite=False)
    entry = {"key": key, "rows": len(table), "columns": list(table.columns)}
    request.app[CATALOGUE][key] = entry
    return web.json_response(entry, status=201, headers={"Location": f"/tables/{quote(key)}"})


@routes.get("/tables")
async def catalogue(request: web.Request) -> web.Response:
    """Lists the tables that this service has received since it started."""
    return web.json_response(list(request.app[CATALOGUE].values()))


@routes.get("/tables/{key}")
async def statistics(request: web.Request) -> web.Response:
    """Describes each column of a table: count, mean, deviation, quartiles."""
    key = request.match_info["key"]
    table = await request.app[STORE].get(key)
    if table is None:
        raise web.HTTPNotFound(text=f"no table {key}")
    return await answer(table.describe)


@routes.get("/tables/{left}/correlation/{right}")
async def correlation(request: web.Request) -> web.Response:
    """Correlates two tables, column by column; both are fetched at once."""
    store = request.app[STORE]
    left, right = await gather(
        *(store.proxy_from_key(request.match_info[side]) for side in ("left", "right"))
    )
    return await answer(lambda: left.corrwith(right, numeric_only=True))


@routes.delete("/tables/{key}")
async def remove(request: web.Request) -> web.Response:
    """Removes a table."""
    key = request.match_info["key"]
    request.app[CATALOGUE].pop(key, None)
    if not await request.app[STORE].evict(key):
        raise web.HTTPNotFound(text=f"no table {key}")
    return web.Response(status=204)


async def answer(compute: Callable[[], pd.DataFrame | pd.Series[float]]) -> web.Response:
    """Computes a table on a thread and sends it as JSON."""
    text = await asyncio.to_thread(lambda: compute().to_json())
    return web.json_response(text=cast(str, text))


@web.middleware
async def errors_to_statuses(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answers errors of the store with the status that says whose fault it is."""
    try:
        return await handler(request)
    except ProxyPlaneError as error:
        # A proxy that fails says so, and tells why.
        cause = getattr(error, "cause", None) or error
        known = [status for kind, status in STATUS.items() if isinstance(cause, kind)]
        status = known[0] if known else 500
        if status >= 500:
            log.error("%s %s: %s", request.method, request.path, error)
        return web.Response(status=status, text=type(cause).__name__)


def make_app(connector: Connector | str) -> web.Application:
    """Makes the service; its store is open as long as it runs."""

    async def with_store(app: web.Application) -> AsyncIterator[None]:
        async with Store("tables", connector) as store:
            app[STORE] = store
            yield

    app = web.Application(client_max_size=MAX_UPLOAD, middlewares=[errors_to_statuses])
    app[CATALOGUE] = {}
    app.add_routes(routes)
    app.cleanup_ctx.append(with_store)
    return app


def main() -> None:
    """Serves until it gets SIGINT or SIGTERM, then answers what it has begun and ends."""
    parser = argparse.ArgumentParser(description="Statistics of tables, over HTTP.")
    parser.add_argument("--store", metavar="URL", default=os.environ.get("TABLES_STORE"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    web.run_app(make_app(options.store or FileConnector()), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
