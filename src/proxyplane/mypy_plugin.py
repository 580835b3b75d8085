"""Shows mypy a proxy as what it stands for: ``plugins = ["proxyplane.mypy_plugin"]``.

Mypy looks members up in the class, and what a `Proxy[T]` has depends on T. So the plugin gives the
class `Proxy` the special methods that a proxy may have, and ``__getattr__`` and ``__setattr__``,
all of type T. Whenever mypy meets one of them it asks the plugin, which finds T there, however the
proxy was reached, and looks the member up in T instead.

Without the plugin the class has none of them, so that using an unresolved proxy is an error rather
than `Any`.

That a proxy may be passed where its target is expected is the work of `proxyplane._mypy_calls`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from mypy.checker import TypeChecker
from mypy.checkmember import analyze_member_access
from mypy.nodes import ARG_POS, Argument, Context, Expression, IndexExpr, MemberExpr, TypeInfo, Var
from mypy.operators import inplace_operator_methods
from mypy.plugin import (
    AttributeContext,
    ClassDefContext,
    FunctionSigContext,
    MethodContext,
    MethodSigContext,
    Plugin,
)
from mypy.plugins.common import add_attribute_to_class, add_method_to_class
from mypy.types import (
    CallableType,
    FunctionLike,
    Instance,
    NoneType,
    Overloaded,
    TupleType,
    Type,
    TypedDictType,
    TypeType,
    UnionType,
    get_proper_type,
)

from proxyplane._forward import full_namespace
from proxyplane._mypy_calls import PROXY, accept_proxies, proxy_of, target_of

COMPARISONS = ["__eq__", "__ge__", "__gt__", "__hash__", "__le__", "__lt__", "__ne__"]
SPECIAL = frozenset([*full_namespace(), *COMPARISONS])
IN_PLACE = {name: f"__{name[3:]}" for name in inplace_operator_methods}
NOWHERE = Context().line


class ProxyPlugin(Plugin):
    """What mypy asks, and who answers."""

    _asking_others = False

    def get_customize_class_mro_hook(  # noqa: D102  # as in all that follow, mypy says what it is
        self, fullname: str
    ) -> Callable[[ClassDefContext], None] | None:
        return _give_members if fullname == PROXY else None

    def get_attribute_hook(  # noqa: D102
        self, fullname: str
    ) -> Callable[[AttributeContext], Type] | None:
        if not self._is_of_target(fullname) or fullname == f"{PROXY}.__getattr__":
            return None
        return partial(_member, fullname.rpartition(".")[2])

    def get_method_hook(  # noqa: D102
        self, fullname: str
    ) -> Callable[[MethodContext], Type] | None:
        return partial(_result, fullname) if self._is_of_target(fullname) else None

    def get_function_signature_hook(  # noqa: D102
        self, fullname: str
    ) -> Callable[[FunctionSigContext], FunctionLike] | None:
        return None if self._asking_others else partial(self._function_signature, fullname)

    def get_method_signature_hook(  # noqa: D102
        self, fullname: str
    ) -> Callable[[MethodSigContext], FunctionLike] | None:
        return None if self._asking_others else partial(self._method_signature, fullname)

    def _is_of_target(self, fullname: str) -> bool:
        owner, _, name = fullname.rpartition(".")
        if owner != PROXY:
            return False
        proxy = self.lookup_fully_qualified(PROXY)
        assert proxy is not None
        assert isinstance(proxy.node, TypeInfo)
        own = proxy.node.names.get(name)
        return own is None or own.plugin_generated

    # Mypy asks the first plugin that answers, and this one answers about every call: so it asks
    # those behind it itself.

    def _function_signature(self, fullname: str, ctx: FunctionSigContext) -> FunctionLike:
        chk = cast(TypeChecker, ctx.api)
        self._asking_others = True
        hook = chk.plugin.get_function_signature_hook(fullname)
        self._asking_others = False
        return accept_proxies(hook(ctx) if hook else ctx.default_signature, ctx.args, chk)

    def _method_signature(self, fullname: str, ctx: MethodSigContext) -> FunctionLike:
        chk = cast(TypeChecker, ctx.api)
        target = target_of(ctx.type)
        if target is not None and self._is_of_target(fullname):
            fullname = _fullname_in(target, fullname, chk)
            ctx = ctx._replace(type=get_proper_type(target))
        self._asking_others = True
        hook = chk.plugin.get_method_signature_hook(fullname)
        self._asking_others = False
        return accept_proxies(hook(ctx) if hook else ctx.default_signature, ctx.args, chk)


def _give_members(ctx: ClassDefContext) -> None:
    info = ctx.cls.info
    if "__getattr__" in info.names:
        return  # mypy may analyse a class more than once
    (target,) = info.defn.type_vars
    for special in SPECIAL:
        # In ``isinstance(p, T)`` mypy imagines a class that is both, which must not be impossible.
        add_attribute_to_class(ctx.api, ctx.cls, special, target, override_allow_incompatible=True)
        # As if it were assigned to ``self``: where T is a descriptor, that is not asked for what
        # it describes.
        info.names[special].implicit = True
    name = Argument(Var("name"), ctx.api.named_type("builtins.str"), None, ARG_POS)
    value = Argument(Var("value"), ctx.api.named_type("builtins.object"), None, ARG_POS)
    for method, arguments in (("__getattr__", [name]), ("__setattr__", [name, value])):
        # Mypy asks about a method only if it is decorated, which a static one is. Out of the body
        # it is not checked: a static ``__getattr__`` would be refused.
        add_method_to_class(ctx.api, ctx.cls, method, arguments, target, is_staticmethod=True)
        ctx.cls.defs.body.pop()


def _member(name: str, ctx: AttributeContext) -> Type:
    """The type of a member of a proxy, given that mypy found T there."""
    chk = cast(TypeChecker, ctx.api)
    target = get_proper_type(ctx.default_attr_type)
    if name == "__setattr__" and isinstance(target, CallableType):
        if not isinstance(ctx.context, MemberExpr) or ctx.context.name == name:
            return target.copy_modified(ret_type=NoneType())
        value = _look_up(chk, ctx.context.name, target.ret_type, ctx.context, is_lvalue=True)
        return target.copy_modified(arg_types=[target.arg_types[0], value])
    if name not in IN_PLACE:
        return _look_up(chk, name, target, ctx.context, is_lvalue=ctx.is_lvalue)
    # The target becomes what the operation gives, and the proxy stays a proxy, an owner an owner.
    with chk.msg.filter_errors() as errors:
        method = _look_up(chk, name, target, ctx.context)
    if errors.has_new_errors():
        method = _look_up(chk, IN_PLACE[name], target, ctx.context)
    method = get_proper_type(method)
    if not isinstance(method, FunctionLike):
        return method
    kind = get_proper_type(ctx.type)
    info = kind.type if isinstance(kind, Instance) else proxy_of(target, chk).type
    items = [one.copy_modified(ret_type=Instance(info, [one.ret_type])) for one in method.items]
    return items[0] if len(items) == 1 else Overloaded(items)


def _look_up(
    chk: TypeChecker, name: str, target: Type, context: Context, *, is_lvalue: bool = False
) -> Type:
    """The type of a member of a proxy's target; if it has none, that is reported."""
    target = get_proper_type(target)
    if name == "__call__":
        if isinstance(target, FunctionLike):
            return target
        if isinstance(target, TypeType):
            return chk.expr_checker.analyze_type_type_callee(target.item, context)
    with chk.msg.filter_errors(save_filtered_errors=True) as errors:
        found = analyze_member_access(
            name,
            target,
            context,
            is_lvalue=is_lvalue,
            is_super=False,
            is_operator=name in SPECIAL,
            original_type=target,
            chk=chk,
        )
    if errors.has_new_errors():
        if context.line == NOWHERE:
            # Mypy asks whether a proxy fits a protocol, and takes any type for a yes. A plugin
            # cannot answer without one, so here is what fits least.
            return chk.named_type("builtins.object")
        chk.msg.add_errors(errors.filtered_errors())
    if chk.options.fine_grained_incremental:
        _depend_on_both(chk, target, context)
    return found


def _depend_on_both(chk: TypeChecker, target: Type, context: Context) -> None:
    """Lets the daemon look at a use of a proxy again when the member of the target changes.

    The daemon takes from the type of each expression which members its uses depend on, and no
    plugin is asked. So the type that it will find is a union of the two.
    """
    parts = [getattr(context, name, None) for name in ("base", "callee", "expr", "left", "right")]
    for part in (context, *parts, *getattr(context, "operands", ())):
        known = chk.lookup_type_or_none(part) if isinstance(part, Expression) else None
        if isinstance(known, Instance) and target_of(known) is not None:
            chk.store_type(part, UnionType([known, target]))


def _result(fullname: str, ctx: MethodContext) -> Type:
    """What a call of a target's method gives, where its signature does not tell all."""
    chk = cast(TypeChecker, ctx.api)
    target = target_of(ctx.type)
    if target is None:
        return ctx.default_return_type
    target = get_proper_type(target)
    if chk.options.fine_grained_incremental:
        _depend_on_both(chk, target, ctx.context)  # again: mypy has looked at the operands since
    by_item = isinstance(target, TupleType | TypedDictType) and fullname.endswith(".__getitem__")
    if by_item and isinstance(ctx.context, IndexExpr):
        return chk.expr_checker.visit_index_with_type(target, ctx.context)
    hook = chk.plugin.get_method_hook(_fullname_in(target, fullname, chk))
    return hook(ctx._replace(type=target)) if hook else ctx.default_return_type


def _fullname_in(target: Type, fullname: str, chk: TypeChecker) -> str:
    """The full name of a method in the class of a proxy's target."""
    return chk.expr_checker.method_fullname(target, fullname.rpartition(".")[2]) or ""


def plugin(version: str) -> type[Plugin]:
    """What mypy calls to get the plugin."""
    return ProxyPlugin
