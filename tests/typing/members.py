"""What mypy sees with the plugin: the members of the target, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Generic, Protocol, Self, TypedDict, TypeVar, overload, reveal_type

from proxyplane import Proxy, ProxyOr, Store

T = TypeVar("T")
N = TypeVar("N", bound="Table")


class Table:
    rows: int = 3

    def mean(self, axis: int | None = None) -> float:
        return 0.5

    @property
    def size(self) -> int:
        return 4

    @overload
    def column(self, index: int) -> list[float]: ...
    @overload
    def column(self, index: str) -> list[str]: ...
    def column(self, index: int | str) -> list[float] | list[str]:
        return []

    @classmethod
    def empty(cls) -> Table:
        return cls()

    @staticmethod
    def version() -> str:
        return ""

    def swap(self) -> Self:
        return self

    def generic(self, value: T) -> list[T]:
        return [value]

    def __add__(self, other: int) -> Table:
        return self

    def __radd__(self, other: int) -> Table:
        return self

    def __matmul__(self, other: Table) -> float:
        return 0.5

    def __neg__(self) -> Table:
        return self

    def __eq__(self, other: object) -> list[bool]:  # type: ignore[override]
        return []

    def __lt__(self, other: int) -> list[bool]:
        return []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> str:
        return ""

    def __contains__(self, item: str) -> bool:
        return True

    def __call__(self, times: int) -> bytes:
        return b""

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    async def __aenter__(self) -> str:
        return ""

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 1


class Box(Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item

    def get(self) -> T:
        return self.item


class Row(TypedDict):
    name: str
    width: int


class HasMean(Protocol):
    rows: int

    def mean(self) -> float: ...


class HasMedian(Protocol):
    def median(self) -> float: ...


# -- members --------------------------------------------------------------------------------------


def attributes(p: Proxy[Table], boxed: Proxy[Box[bytes]], either: ProxyOr[Table]) -> None:
    reveal_type(p.rows)  # int
    reveal_type(p.mean())  # float
    reveal_type(p.mean)  # def (axis: int | None =) -> float
    reveal_type(p.size)  # int
    reveal_type(p.column(1))  # list[float]
    reveal_type(p.column("a"))  # list[str]
    reveal_type(p.empty())  # Table
    reveal_type(p.version())  # str
    reveal_type(p.swap())  # Table
    reveal_type(p.generic(b""))  # list[bytes]
    reveal_type(boxed.item)  # bytes
    reveal_type(boxed.get())  # bytes
    reveal_type(either.rows)  # int
    reveal_type(either.mean())  # float
    p.median()  # error attr-defined: "Table" has no attribute "median"
    p.mean("first")  # error arg-type: Argument 1 to "mean" of "Table" has incompatible type "str"
    either.median()  # error attr-defined, union-attr: "Table" has no attribute "median"


def assigned(p: Proxy[Table], either: ProxyOr[Table]) -> None:
    p.rows = 4
    either.rows = 4
    del p.rows
    p.rows = "4"  # error assignment: (expression has type "str", variable has type "int")
    p.median = 4  # error attr-defined: "Table" has no attribute "median"
    p.size = 4  # error misc: Property "size" defined in "Table" is read-only


def operators(p: Proxy[Table], q: Proxy[Table], n: Proxy[int], s: Proxy[str]) -> None:
    reveal_type(p + 1)  # Table
    reveal_type(1 + p)  # Table
    reveal_type(p @ q)  # float
    reveal_type(Table() @ q)  # float
    reveal_type(-p)  # Table
    reveal_type(p == 1)  # list[bool]
    reveal_type(p < 1)  # list[bool]
    reveal_type(n + n)  # int
    reveal_type(n * 1.5)  # float
    reveal_type(2 - n)  # int
    reveal_type(n < 3)  # bool
    reveal_type(s + "b")  # str
    reveal_type("a" + s)  # str
    reveal_type("a" in s)  # bool
    p + "b"  # error operator: Unsupported operand types for +
    p - 1  # error operator: Unsupported operand types for -
    n += 1
    reveal_type(n)  # Proxy[int]
    n += "b"  # error operator: Unsupported operand types for +


def protocols(p: Proxy[Table], n: Proxy[int], names: Proxy[list[str]]) -> None:
    reveal_type(len(p))  # int
    reveal_type(p[0])  # str
    reveal_type("a" in p)  # bool
    reveal_type(p(2))  # bytes
    reveal_type([name.upper() for name in names])  # list[str]
    reveal_type(sorted(names))  # list[str]
    reveal_type(list(names))  # list[str]
    reveal_type(max(names))  # str
    reveal_type(dict(enumerate(names)))  # dict[int, str]
    reveal_type(abs(n))  # int
    reveal_type(divmod(n, 2))  # tuple[int, int]
    reveal_type(str(n))  # str
    reveal_type(bool(n))  # bool
    with p as entered:
        reveal_type(entered)  # Table
    names[0] = "a"
    names.append("a")
    del names[0]
    p["a"]  # error index: Invalid index type "str" for "Proxy[Table]"; expected type "int"
    p("a")  # error arg-type: incompatible type "str"; expected "int"
    names[0] = 1  # error call-overload: No overload variant of "__setitem__" of "list"
    names.append(1)  # error arg-type: Argument 1 to "append" of "list"
    len(n)  # error arg-type: Argument 1 to "len" has incompatible type "Proxy[int]"
    for _ in n:  # error attr-defined: "int" has no attribute "__iter__"
        pass
    n()  # error operator: "int" not callable
    n[0]  # error index: Value of type "int" is not indexable


async def async_protocols(p: Proxy[Table], n: Proxy[int]) -> None:
    async with p as entered:
        reveal_type(entered)  # str
    async for item in p:
        reveal_type(item)  # int
    async with n:  # error attr-defined: "int" has no attribute "__aenter__"
        pass


# -- targets of every kind ------------------------------------------------------------------------


def targets(
    row: Proxy[Row],
    pair: Proxy[tuple[int, str]],
    function: Proxy[Callable[[int], str]],
    cls: Proxy[type[Table]],
    one: Proxy[Table | Box[int]],
    nested: Proxy[dict[str, Proxy[Table]]],
    tables: list[Proxy[Table]],
) -> None:
    reveal_type(row["name"])  # str
    reveal_type(row["width"])  # int
    reveal_type(row.get("width"))  # int
    row["width"] = 3
    row["height"]  # error typeddict-item: TypedDict "Row" has no key "height"
    row["width"] = "3"  # error arg-type: Value of "width" has incompatible type "str"
    reveal_type(pair[0])  # int
    reveal_type(pair[1])  # str
    reveal_type(function(1))  # str
    function("1")  # error arg-type: incompatible type "str"; expected "int"
    reveal_type(cls())  # Table
    reveal_type(cls.empty())  # Table
    one.rows  # error union-attr: Item "Box[int]" of "Table | Box[int]" has no attribute "rows"
    reveal_type(nested["a"].rows)  # int
    reveal_type(nested.get("a"))  # Proxy[Table] | None
    reveal_type([table.rows for table in tables])  # list[int]


def generic(p: Proxy[T], bounded: Proxy[N]) -> None:
    reveal_type(bounded.rows)  # int
    reveal_type(bounded.swap())  # N
    p.rows  # error attr-defined: "T" has no attribute "rows"


def narrowed(p: Proxy[Table], names: Proxy[list[str]], n: Proxy[int]) -> None:
    if isinstance(p, Table):
        reveal_type(p.rows)  # int
    if isinstance(names, list):
        reveal_type(len(names))  # int
    if isinstance(n, int):
        reveal_type(n + 1)  # int


async def fresh(store: Store) -> None:
    reveal_type((await store.proxy(Table())).mean())  # float
    reveal_type((await store.proxy([1])).copy())  # list[int]
    reveal_type(Proxy(Table).rows)  # int


# -- a proxy where its target is expected ---------------------------------------------------------


def takes_table(table: Table, *more: Table, scale: float = 1.0) -> Table:
    return table


def takes_first(items: Sequence[T]) -> T:
    return items[0]


def takes_mean(thing: HasMean) -> None: ...
def takes_median(thing: HasMedian) -> None: ...
def takes_function(function: Callable[[int], str]) -> None: ...
def takes_iterable(items: Iterable[int]) -> None: ...


def passed(
    p: Proxy[Table],
    n: Proxy[int],
    s: Proxy[str],
    words: Proxy[list[str]],
    function: Proxy[Callable[[int], str]],
    either: ProxyOr[Table],
) -> None:
    reveal_type(takes_table(p))  # Table
    reveal_type(takes_table(Table(), p, scale=n))  # Table
    reveal_type(takes_table(either))  # Table
    reveal_type(takes_table(p if n else either))  # Table
    reveal_type(takes_first(words))  # str
    reveal_type(Box(item=n))  # Box[Proxy[int]]
    reveal_type(Table().column(n))  # list[float]
    reveal_type(Table().column(s))  # list[str]
    reveal_type(",".join(words))  # str
    takes_mean(p)
    takes_function(function)
    takes_table(n)  # error arg-type: incompatible type "Proxy[int]"; expected "Table"
    takes_table(p, scale=s)  # error arg-type: incompatible type "Proxy[str]"; expected "float"
    takes_median(p)  # error arg-type: incompatible type "Proxy[Table]"; expected "HasMedian"
    takes_iterable(words)  # error arg-type: incompatible type "Proxy[list[str]]"
    table: Table = p  # error assignment: (expression has type "Proxy[Table]"
    print(table)


def returned(p: Proxy[Table]) -> Table:
    return p  # error return-value: (got "Proxy[Table]", expected "Table")


async def sent(p: Proxy[Table], n: Proxy[int]) -> None:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor() as pool:
        reveal_type(pool.submit(takes_table, p, scale=n))  # Future[Table]
        reveal_type(await asyncio.to_thread(takes_table, p))  # Table
        reveal_type(await loop.run_in_executor(pool, takes_table, p))  # Table
        pool.submit(takes_table, n)  # error arg-type: incompatible type "Proxy[int]"
        await asyncio.to_thread(takes_table, n)  # error arg-type: incompatible type "Proxy[int]"
        await loop.run_in_executor(pool, takes_table, n)  # error arg-type: "Proxy[int]"


# -- Any ------------------------------------------------------------------------------------------


def any_only_where_it_was_asked_for(p: Proxy[Any], found: object, store: Store) -> None:
    reveal_type(p.anything)  # Any
    reveal_type(p + 1)  # Any
    reveal_type(p[0])  # Any
    reveal_type(store.proxy_from_key("k").anything)  # Any
    if isinstance(found, Proxy):
        reveal_type(found.anything)  # Any
