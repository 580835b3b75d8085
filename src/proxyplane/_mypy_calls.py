"""The part of the mypy plugin that lets proxies be passed where their targets are expected.

Mypy has no way to say that a type converts to another, but a plugin may change the signature of a
call. `accept_proxies` does so where an argument is a proxy whose target would fit: the parameter
then takes ``T | Proxy[T]``. Other calls keep their signatures, and so their error messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from mypy.checker import TypeChecker
from mypy.erasetype import erase_typevars
from mypy.expandtype import expand_type
from mypy.maptype import map_instance_to_supertype
from mypy.nodes import (
    ARG_STAR,
    AwaitExpr,
    CallExpr,
    ConditionalExpr,
    Expression,
    IndexExpr,
    MemberExpr,
    NameExpr,
    OpExpr,
    TempNode,
    TypeInfo,
    Var,
)
from mypy.subtypes import is_subtype
from mypy.typeops import make_simplified_union
from mypy.types import (
    CallableType,
    FunctionLike,
    Instance,
    Parameters,
    TupleType,
    Type,
    TypeVarId,
    TypeVarTupleType,
    UnionType,
    UnpackType,
    get_proper_type,
)

PROXY = "proxyplane.proxy.Proxy"

# What an argument may be for its type to be asked for. The others, literals and lambdas among
# them, are no proxies, or mean little without the type that is expected.
EXPRESSIONS = (
    AwaitExpr,
    CallExpr,
    ConditionalExpr,
    IndexExpr,
    MemberExpr,
    NameExpr,
    OpExpr,
    TempNode,
)
NEVER_PROXIES = frozenset(f"builtins.{name}" for name in ("bool", "bytes", "int", "list", "str"))


def accept_proxies(
    signature: FunctionLike, args: Sequence[Sequence[Expression]], chk: TypeChecker
) -> FunctionLike:
    """The signature of a call, taking those of its arguments that are proxies.

    Args:
        signature: What is called.
        args: For each of its parameters, the arguments of this call.
        chk: The type checker.
    """
    if not isinstance(signature, CallableType) or len(signature.arg_types) != len(args):
        return signature
    given = [[_type_of(one, chk) for one in arguments] for arguments in args]
    targets = [[one and _without_proxies(one) for one in types] for types in given]
    if not any(one for types in targets for one in types):
        return signature
    passing_on = _accept_for_another(signature, given, targets, chk)
    if passing_on is not None:
        return passing_on
    formals = list(signature.arg_types)
    for position, formal in enumerate(signature.arg_types):
        if isinstance(get_proper_type(formal), UnpackType):
            continue
        loose = erase_typevars(formal)
        for proxy, target in zip(given[position], targets[position], strict=True):
            if proxy is None or target is None or is_subtype(proxy, loose):
                continue
            if is_subtype(target, loose):
                formals[position] = _or_proxy(formal, chk)
    return signature.copy_modified(arg_types=formals)


def _accept_for_another(
    signature: CallableType,
    given: list[list[Type | None]],
    targets: list[list[Type | None]],
    chk: TypeChecker,
) -> CallableType | None:
    """The same for what is called with a function and its arguments, ``submit(function, proxy)``.

    None if it is not.
    """
    spec, last = signature.param_spec(), get_proper_type(signature.arg_types[-1])
    rest: TypeVarId
    if spec is not None:
        rest, passed = spec.id, [*targets[-2], *targets[-1]]
    elif isinstance(last, UnpackType) and isinstance(last.type, TypeVarTupleType):
        rest, passed = last.type.id, targets[-1]
    else:
        return None
    if not any(passed):
        return None
    for position, formal in enumerate(map(get_proper_type, signature.arg_types)):
        function = get_proper_type(given[position][0]) if given[position] else None
        if not isinstance(formal, CallableType) or not isinstance(function, CallableType):
            continue
        exact: Type
        loose: Type
        types: list[Type] = [_or_proxy(one, chk) for one in function.arg_types]
        if spec is not None:
            exact = Parameters(function.arg_types, function.arg_kinds, function.arg_names)
            loose = Parameters(types, function.arg_kinds, function.arg_names)
        elif ARG_STAR in function.arg_kinds[: len(passed)]:
            return None
        else:
            fallback = chk.named_generic_type("builtins.tuple", [chk.named_type("builtins.object")])
            exact = TupleType(function.arg_types[: len(passed)], fallback)
            loose = TupleType(types[: len(passed)], fallback)
        accepting = expand_type(signature, {rest: loose})
        formals = list(accepting.arg_types)
        formals[position] = expand_type(formal, {rest: exact})
        return accepting.copy_modified(
            arg_types=formals, variables=[one for one in signature.variables if one.id != rest]
        )
    return None


def _type_of(argument: Expression, chk: TypeChecker) -> Type | None:
    """The type of an argument, unless it cannot be a proxy."""
    if isinstance(argument, NameExpr) and isinstance(argument.node, Var):
        declared = get_proper_type(argument.node.type)
        if isinstance(declared, Instance) and declared.type.fullname in NEVER_PROXIES:
            return None
    if not isinstance(argument, EXPRESSIONS):
        return None
    # Mypy will look at it again, with the expected type at hand, and then report what is wrong.
    with chk.msg.filter_errors(), chk.local_type_map:
        return chk.expr_checker.accept(argument)


def _without_proxies(given: Type) -> Type | None:
    """`given` with the types of targets in place of their proxies'; None if there is no proxy."""
    given = get_proper_type(given)
    if not isinstance(given, UnionType):
        return target_of(given)
    targets = [_without_proxies(item) for item in given.items]
    if not any(targets):
        return None
    return make_simplified_union(
        [target or item for target, item in zip(targets, given.items, strict=True)]
    )


def target_of(given: Type) -> Type | None:
    """The T of a `Proxy[T]`, or of a class derived from it."""
    if isinstance(given, Instance):
        for base in given.type.mro:
            if base.fullname == PROXY:
                return map_instance_to_supertype(given, base).args[0]
    return None


def proxy_of(target: Type, chk: TypeChecker) -> Instance:
    """The type of a proxy of `target`."""
    module, _, name = PROXY.rpartition(".")
    info = chk.modules[module].names[name].node
    assert isinstance(info, TypeInfo)
    return Instance(info, [target])


def _or_proxy(target: Type, chk: TypeChecker) -> UnionType:
    return UnionType([target, proxy_of(target, chk)])
