"""The union of all releases, which `install()` serves when no release is named.

Names that only some releases have are all there. A name whose arguments changed between 0.17 and
0.20 accepts both forms, by argument name. By position the argument after the kernel size is the
dilation up to 0.17 and the stride since 0.20: the types of the arguments that follow tell which,
and a call that could be either is refused with the releases to choose from.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from natc.compat.natten.arguments import check_window, options_017, options_020, sizes
from natc.compat.natten.functions_017 import operators
from natc.compat.natten.modules import of_each_rank
from natc.compat.natten.modules_017 import Module017
from natc.compat.natten.modules_020 import Module020
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError, ArgumentTypeError

_PerAxis = Any
# Names of arguments in other releases.
_RENAMED = {"embed_dim": "dim", "bias": "rel_pos_bias"}
# The functions and modules of both generations take so many arguments up to the kernel size
# (modules: with `self`), and from there on other ones.
_SHARED = 4


def _after_size(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function after its kernel size, by name."""
    return dict(list(inspect.signature(function).parameters.items())[_SHARED:])


def _of_both(up_to_017: Callable[..., Any], since_020: Callable[..., Any]) -> inspect.Signature:
    """Return a signature with `*where` after the kernel size and all other parameters by name."""
    signature = inspect.signature(up_to_017)
    shared = list(signature.parameters.values())[:_SHARED]
    by_name = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (_after_size(since_020) | _after_size(up_to_017)).values()
    ]
    where = inspect.Parameter("where", inspect.Parameter.VAR_POSITIONAL)
    return signature.replace(parameters=[*shared, where, *by_name])


def by_name(
    values: Sequence[Any], up_to_017: Sequence[str], since_020: Sequence[str]
) -> dict[str, Any]:
    """Return the positional arguments after the kernel size by the names of their generation.

    Raises:
        ArgumentTypeError: the values fit both generations and mean different things.
    """
    if not values or (len(values) == 1 and _entries(values[0]) in ({1}, {None})):
        return {}
    kinds = {type(entry) for entry in _entries(values[1])} if len(values) > 1 else set()
    if kinds not in ({bool}, {int}):
        raise ArgumentTypeError(
            f"The argument after the kernel size is {values[0]!r}: NATTEN up to 0.17 takes the "
            "dilation there, NATTEN since 0.20 the stride. Pass dilation or stride by name, or "
            "choose a release: natc.compat.install('0.17') or natc.compat.install('0.21')."
        )
    names = up_to_017 if kinds == {bool} else since_020
    if len(values) > len(names):
        raise TypeError(f"{len(values) - len(names)} positional arguments too many.")
    return dict(zip(names, values))


def _entries(value: Any) -> set[Any]:
    return set(value) if isinstance(value, (tuple, list)) else {value}


def either(up_to_017: Callable[..., Any], since_020: Callable[..., Any]) -> Callable[..., Any]:
    """Return na1d, na2d or na3d, which passes a call on to the generation that has its arguments.

    up_to_017, since_020: the function of that name in each generation.
    """
    names_017, names_020 = tuple(_after_size(up_to_017)), tuple(_after_size(since_020))
    only_017, only_020 = set(names_017) - set(names_020), set(names_020) - set(names_017)

    @functools.wraps(up_to_017)
    def na(
        query: Tensor, key: Tensor, value: Tensor, kernel_size: _PerAxis, *where: Any, **by: Any
    ) -> Any:
        named = by_name(where, names_017, names_020)
        early = [name for name in (*named, *by) if name in only_017]
        late = [name for name in (*named, *by) if name in only_020]
        if early and late:
            raise ArgumentTypeError(
                f"{na.__name__} got {early[0]}, which NATTEN has up to 0.17, and {late[0]}, which "
                "it has since 0.20. natc.na1d, na2d and na3d combine a bias with a stride."
            )
        function = since_020 if late else up_to_017
        return function(query, key, value, kernel_size, **named, **by)

    na.__signature__ = _of_both(up_to_017, since_020)  # type: ignore[attr-defined]
    return na


class _UnionModule(Module017):
    """A module of 0.17.4 that also takes embed_dim and stride of 0.20, and bias of 0.14."""

    takes_even = True
    stride: tuple[int, ...]

    def __init__(self, *values: Any, **by: Any) -> None:
        try:
            names = (tuple(_after_size(each.__init__)) for each in (Module017, Module020))
            named = by_name(values[3:], *names)
            renamed = {_RENAMED.get(name, name): value for name, value in by.items()}
            self._start(*values[:3], **named, **renamed)  # type: ignore[misc]
        except TypeError as error:
            raise _with_release(error, type(self), values, by) from None

    def _start(
        self, dim: int, num_heads: int, kernel_size: _PerAxis, stride: _PerAxis = 1, **options: Any
    ) -> None:
        if dim % num_heads:
            raise ArgumentError(
                f"dim is {dim}; it must be a multiple of num_heads, {num_heads}. NATTEN up to "
                "0.14.4 takes kernel_size before num_heads: natc.compat.install('0.14.4')."
            )
        super().__init__(dim, num_heads, kernel_size, **options)
        self.stride = sizes("stride", stride, self.rank)
        self.embed_dim, self.na_dim = dim, self.rank

    __init__.__signature__ = _of_both(  # type: ignore[attr-defined]
        Module017.__init__, Module020.__init__
    )

    def _check_window(self, spatial: Sequence[int]) -> None:
        window = self.kernel_size, self.dilation
        check_window(*window, spatial, even=self.rpb is None, smallest=1)

    def _attend_unfused(self, *arguments: Any) -> Tensor:
        if set(self.stride) != {1}:
            raise ArgumentError(
                f"stride is {self.stride}; with attn_drop in training, and under torch.jit.trace, "
                "it must be 1."
            )
        return super()._attend_unfused(*arguments)


Union = of_each_rank(
    __name__, "Union", [_UnionModule] * 3, functools.partial(operators, even=True)
)


def check_all_args(na_dim: int, kernel_size: Any, *where: Any, **by: Any) -> Any:
    """Return the options with one entry per axis: four in the form of 0.20, else three."""
    if len(where) + len(by) == 3:
        return options_020(na_dim, kernel_size, *where, smallest=1, **by)  # type: ignore[misc]
    return options_017(na_dim, kernel_size, *where, **by)


def join(names: dict[str, dict[str, Any]], of_release: Callable[[Release], Any]) -> None:
    """Add the names of all releases to `names`, which starts as 0.17.4, and merge shared names.

    of_release: returns the names of every module of a release.
    """
    up_to_017, since_020 = names["functional"], of_release(Release("0.21.7", union=True))
    fused = {
        name: hinted(either(up_to_017[name], since_020["functional"][name]))
        for name in ("na1d", "na2d", "na3d")
    }
    releases = (of_release(Release(version)) for version in ("0.17.5", "0.15.1", "0.14.6"))
    for modules in (since_020, *releases):
        for module, additions in modules.items():
            names[module] = {**additions, **names.get(module, {})}
    names["functional"] = {
        name: hinted(value) if inspect.isfunction(value) else value
        for name, value in names["functional"].items()
    } | fused
    for name, function in fused.items():
        # `natten.na2d` is a submodule in 0.17, with the module class in it, and a function in
        # 0.20. A function that has the class as an attribute serves both.
        vars(function).update(names[name])
        names[""][name] = names["experimental"][name] = function
    for module in ("utils", "utils.checks"):
        names[module]["check_all_args"] = check_all_args


def hinted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with TypeErrors that name the releases whose arguments the call fits."""

    @functools.wraps(function)
    def call(*values: Any, **by: Any) -> Any:
        try:
            return function(*values, **by)
        except TypeError as error:
            raise _with_release(error, function, values, by) from None

    return call


def _with_release(error: TypeError, function: Any, values: Any, by: Any) -> TypeError:
    """Return `error`; if `function` refuses the arguments, name the releases that take them."""
    from natc.compat.natten.interface import interface

    name, fitting = function.__name__, []
    if isinstance(error, ArgumentTypeError) or _binds(function, values, by):
        return error
    for version in ("0.14.4", "0.14.6", "0.15.1", "0.17.5", "0.21.7"):
        names = interface(Release(version))
        candidate = names["natten.functional"].get(name) or names["natten"].get(name)
        if candidate is not None and _binds(candidate, values, by):
            fitting.append(f"natc.compat.install({version!r})")
    if not fitting:
        return error
    return ArgumentTypeError(f"{error} This call fits another release: {' or '.join(fitting)}.")


def _binds(function: Callable[..., Any], values: Any, by: Any) -> bool:
    with contextlib.suppress(TypeError):
        inspect.signature(function).bind(*values, **by)
        return True
    return False
