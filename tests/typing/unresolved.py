"""Without the plugin a proxy has no member but ``await``: errors, and no silent `Any`."""

from __future__ import annotations

from proxyplane import Proxy, extract


class Table:
    rows: int = 3

    def mean(self) -> float:
        return 0.5

    def __add__(self, other: int) -> int:
        return other


def wants_table(table: Table) -> None: ...


def use(p: Proxy[Table], q: Proxy[list[int]]) -> Table:
    p.mean()  # mypy attr-defined, pyright reportAttributeAccessIssue
    print(p.rows)  # mypy attr-defined, pyright reportAttributeAccessIssue
    p.rows = 4  # mypy attr-defined, pyright reportAttributeAccessIssue
    del p.rows  # mypy attr-defined, pyright reportAttributeAccessIssue
    print(p + 1)  # mypy operator, pyright reportOperatorIssue
    print(p < 1)  # mypy operator, pyright reportOperatorIssue
    print(q[0])  # mypy index, pyright reportIndexIssue
    print(len(q))  # mypy arg-type, pyright reportArgumentType
    print(1 in q)  # mypy operator, pyright reportOperatorIssue
    for _ in q:  # mypy attr-defined, pyright reportGeneralTypeIssues
        pass
    p()  # mypy operator, pyright reportCallIssue
    with p:  # mypy attr-defined, pyright reportGeneralTypeIssues
        pass
    wants_table(p)  # mypy arg-type, pyright reportArgumentType
    extract(3)  # mypy arg-type, pyright reportArgumentType
    table: Table = p  # mypy assignment, pyright reportAssignmentType
    print(table)
    return p  # mypy return-value, pyright reportReturnType
