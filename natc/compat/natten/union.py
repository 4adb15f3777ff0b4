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

from natc.compat.natten import helpers
from natc.compat.natten.arguments import check_window, sizes
from natc.compat.natten.functions_017 import attend, check_xformers, operators
from natc.compat.natten.functions_020 import check_backend
from natc.compat.natten.modules import of_each_rank
from natc.compat.natten.modules_017 import Configured
from natc.compat.natten.operators import is_tracing
from natc.compat.natten.releases import MOST_COMMON, Release
from natc.errors import ArgumentError, ArgumentTypeError

_Tensor = Tensor | None
_PerAxis = Any
_FUSED_017 = ("dilation", "is_causal", "rpb", "scale", "additional_keys", "additional_values",
              "xformers_kwargs")  # fmt: skip
_FUSED_020 = ("stride", "dilation", "is_causal", "scale", "additional_keys", "additional_values",
              "attention_kwargs", "backend")  # fmt: skip
_MODULE_017 = ("dilation", "is_causal", "rel_pos_bias", "qkv_bias", "qk_scale", "attn_drop",
               "proj_drop", "use_experimental_ops")  # fmt: skip
_MODULE_020 = ("stride", "dilation", "is_causal", "qkv_bias", "qk_scale", "proj_drop")
# Names of arguments in other releases.
_RENAMED = {"embed_dim": "dim", "bias": "rel_pos_bias"}


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


def fused(rank: int) -> Callable[..., Any]:
    """Return na1d, na2d or na3d, with the arguments of 0.17 and of 0.21."""
    fused_class = operators(rank, even=True)[2]

    def complete(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: _PerAxis,
        *,
        stride: _PerAxis = 1,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        scale: float | None = None,
        rpb: _Tensor = None,
        additional_keys: _Tensor = None,
        additional_values: _Tensor = None,
        xformers_kwargs: dict[str, Any] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        q_tile_shape: Any = None,
        kv_tile_shape: Any = None,
        backward_q_tile_shape: Any = None,
        backward_kv_tile_shape: Any = None,
        backward_kv_splits: Any = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule: Any = None,
        torch_compile: bool = False,
        return_lse: bool = False,
    ) -> Any:
        check_backend(backend, attention_kwargs)
        where = kernel_size, dilation, is_causal, scale
        if is_tracing() and stride == 1 and additional_keys is None and not return_lse:
            return fused_class.apply(query, key, value, rpb, *where, None, None)[0]
        if additional_keys is not None or additional_values is not None:
            check_xformers(xformers_kwargs)
        return attend(
            rank,
            query,
            key,
            value,
            rpb,
            *where,
            even=True,
            smallest=1,
            stride=stride,
            additional_keys=additional_keys,
            additional_values=additional_values,
            return_lse=return_lse,
        )

    @functools.wraps(complete)
    def na(
        query: Tensor, key: Tensor, value: Tensor, kernel_size: _PerAxis, *where: Any, **by: Any
    ) -> Any:
        named = by_name(where, _FUSED_017, _FUSED_020)
        return complete(query, key, value, kernel_size, **named, **by)

    na.__name__ = na.__qualname__ = f"na{rank}d"
    na.__signature__ = _with_where(complete)  # type: ignore[attr-defined]
    return na


def _with_where(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of `function`, with `*where` in front of its keyword-only part."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    index = [p.kind for p in parameters].index(inspect.Parameter.KEYWORD_ONLY)
    parameters.insert(index, inspect.Parameter("where", inspect.Parameter.VAR_POSITIONAL))
    return signature.replace(parameters=parameters)


class _UnionModule(Configured):
    """A module of 0.17.4 that also takes embed_dim and stride of 0.20, and bias of 0.14."""

    takes_even = True
    stride: tuple[int, ...]

    def __init__(self, *values: Any, **by: Any) -> None:
        super().__init__()
        try:
            named = by_name(values[3:], _MODULE_017, _MODULE_020)
            renamed = {_RENAMED.get(name, name): value for name, value in by.items()}
            self._start(*values[:3], **named, **renamed)  # type: ignore[misc]
        except TypeError as error:
            raise _with_release(error, type(self), values, by) from None

    def _start(
        self,
        dim: int,
        num_heads: int,
        kernel_size: _PerAxis,
        *,
        stride: _PerAxis = 1,
        dilation: _PerAxis = 1,
        is_causal: _PerAxis = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:
        if dim % num_heads:
            raise ArgumentError(
                f"dim is {dim}; it must be a multiple of num_heads, {num_heads}. NATTEN up to "
                "0.14.4 takes kernel_size before num_heads: natc.compat.install('0.14.4')."
            )
        self.stride = sizes("stride", stride, self.rank)
        self.embed_dim, self.na_dim = dim, self.rank
        self._configure(
            dim, num_heads, kernel_size, dilation, is_causal, rel_pos_bias, qkv_bias, qk_scale,
            attn_drop, proj_drop, use_experimental_ops,
        )  # fmt: skip

    __init__.__signature__ = _with_where(_start)  # type: ignore[attr-defined]

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


Union = of_each_rank("Union", _UnionModule, functools.partial(operators, even=True))


def check_all_args(na_dim: int, kernel_size: Any, *where: Any, **by: Any) -> Any:
    """Return the options with one entry per axis: four in the form of 0.20, else three."""
    generation = Release("0.21.7" if len(where) + len(by) == 3 else MOST_COMMON, union=True)
    return helpers.checks(generation)["check_all_args"](na_dim, kernel_size, *where, **by)


def join(names: dict[str, dict[str, Any]], of_release: Callable[[Release], Any]) -> None:
    """Add the names of all releases to `names`, which starts as 0.17.4, and merge shared names.

    of_release: returns the names of every module of a release.
    """
    additional = Release("0.17.5"), Release("0.21.7", union=True), Release("0.15.1")
    for release in (*additional, Release("0.14.6")):
        for module, additions in of_release(release).items():
            names[module] = {**additions, **names.get(module, {})}
    for rank in (1, 2, 3):
        names["functional"][f"na{rank}d"] = fused(rank)
    names["functional"] = {
        name: hinted(value) if inspect.isfunction(value) else value
        for name, value in names["functional"].items()
    }
    for rank in (1, 2, 3):
        # `natten.na2d` is a submodule in 0.17, with the module class in it, and a function in
        # 0.20. A function that has the class as an attribute serves both.
        function = names["functional"][f"na{rank}d"]
        vars(function).update(names[f"na{rank}d"])
        names[""][f"na{rank}d"] = names["experimental"][f"na{rank}d"] = function
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
