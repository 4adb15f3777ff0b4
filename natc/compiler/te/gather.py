"""Gather, from which operations are built: each site sums over its taps.

A site is a query and its taps the keys it attends to, or a site is a key and its taps the queries
that attend to it. Each pair of site and tap gets a weight from a few dot products, and the site
sums weight times a vector of the tap. No operation scatters, so none needs atomics, and every sum
has one order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.axis import Axis, axes_of, skippable
from natc.compiler.te.logits import logit_of
from natc.compiler.te.problem import Problem, Vectors, stage

# Takes the indices of a site and of its tap on each axis.
Pairwise = Callable[[Sequence[Expr], Sequence[Expr]], Expr]


class Gather:
    """The sites and taps of one operation.

    from_keys: whether sites are keys. tables: whether `attended` is a table, by which a space can
    skip taps without a pair. axes: the taps of each axis; None: `axes_of`.
    """

    # How `weights` leaves out what is no pair: its value is not computed.
    _choose = staticmethod(tirx.if_then_else)

    def __init__(
        self,
        problem: Problem,
        *,
        from_keys: bool,
        tables: bool = True,
        axes: list[Axis] | None = None,
    ) -> None:
        self.problem = problem
        if axes is None:
            axes = axes_of(problem, from_keys=from_keys)
            axes = skippable(problem, axes) if tables else axes
        self.axes = axes
        self.window = [axis.taps for axis in self.axes]
        self._sites, self._n = problem.site_shape, len(problem.site_names)

    def positions(self, site: Sequence[Expr], tap: Sequence[Expr]) -> list[Expr]:
        """Return the position that a tap reads, on each axis."""
        _, positions, _ = self.problem.parts(site)
        return [a.position[i, t] for a, i, t in zip(self.axes, positions, tap)]

    def attended(self, site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
        """Return whether the site and its tap are a pair of a query and a key in its window."""
        _, positions, _ = self.problem.parts(site)
        return all_of([a.attended(i, t) for a, i, t in zip(self.axes, positions, tap)])

    def bias(self, rpb: te.Tensor) -> Pairwise:
        """Return the relative positional bias of each pair."""

        def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
            _, positions, _ = self.problem.parts(site)
            offsets = [a.offset(i, t) for a, i, t in zip(self.axes, positions, tap)]
            return self.problem.bias_at(rpb, site, offsets)

        return value

    def logits(self, scores: te.Tensor, rpb: te.Tensor | None) -> Pairwise:
        """Return the logit of each pair from its dot product in the stage `scores`."""
        bias = None if rpb is None else self.bias(rpb)

        def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
            pair_bias = None if bias is None else bias(site, tap)
            return logit_of(self.problem, scores(*site, *tap), pair_bias)

        return value

    def scalar_of_site(self, tensor: te.Tensor) -> Pairwise:
        """Return the site's element of a tensor without channels, for each pair."""
        return lambda site, tap: tensor[tuple(site)]

    def scalar_of_tap(self, tensor: te.Tensor) -> Pairwise:
        """Return the tap's element of a tensor without channels, for each pair."""
        return lambda site, tap: self.problem.read(tensor, site, self.positions(site, tap))

    def tap_vector(self, tensor: Vectors, name: str | None = None) -> te.Tensor:
        """Return a stage with the vector of each tap, which a schedule may hold in registers.

        name: of the stage; by default the tensor's name and `_tap`.
        """
        p = self.problem

        def element(*at: tirx.Var) -> Expr:
            site, tap, d = at[: self._n], at[self._n : -1], at[-1]
            return p.read(tensor, site, self.positions(site, tap), d)

        return stage(
            (*self._sites, *self.window, tensor.shape[-1]),
            [*p.site_names, *p.tap_names, "d"],
            element,
            name or f"{tensor.name}_tap",
        )

    def site_vector(self, tensor: te.Tensor) -> te.Tensor:
        """Return a stage with the vector of each site."""
        p = self.problem

        def element(*at: tirx.Var) -> Expr:
            _, positions, _ = p.parts(at[:-1])
            return p.read(tensor, at[:-1], positions, at[-1])

        return stage(
            (*self._sites, tensor.shape[-1]),
            [*p.site_names, "d"],
            element,
            f"{tensor.name}_site",
        )

    def product(self, of_site: te.Tensor, of_tap: te.Tensor, name: str) -> te.Tensor:
        """Return the dot product of the site's and the tap's vectors, for each pair."""
        p = self.problem
        d = te.reduce_axis((0, of_site.shape[-1]), "d")
        return stage(
            (*self._sites, *self.window),
            [*p.site_names, *p.tap_names],
            lambda *at: te.sum(
                p.accumulate(of_site(*at[: self._n], d)) * p.accumulate(of_tap(*at, d)), d
            ),
            name,
        )

    def weights(self, value: Pairwise, fill: float = 0.0) -> te.Tensor:
        """Return a stage with `value` for each site and tap, `fill` if they are not a pair."""
        p = self.problem

        def weight(*at: tirx.Var) -> Expr:
            site, tap = at[: self._n], at[self._n :]
            return self._choose(self.attended(site, tap), value(site, tap), p.const(fill))

        return stage((*self._sites, *self.window), [*p.site_names, *p.tap_names], weight, "weight")

    def summed(self, weights: te.Tensor, of_tap: te.Tensor) -> te.Tensor:
        """Return sum of weight * vector over taps, in the accumulator's dtype."""
        p = self.problem
        taps = [te.reduce_axis((0, n), name) for n, name in zip(self.window, p.tap_names)]
        return stage(
            (*self._sites, of_tap.shape[-1]),
            [*p.site_names, "d"],
            lambda *at: te.sum(
                weights(*at[:-1], *taps) * p.accumulate(of_tap(*at[:-1], *taps, at[-1])), taps
            ),
            "summed",
        )

    def weighted_sum(
        self, weights: te.Tensor, of_tap: te.Tensor, scale: Expr | None = None
    ) -> te.Tensor:
        """Return sum of weight * vector over taps, times scale, in the kernel's dtype."""
        p = self.problem
        summed = self.summed(weights, of_tap)
        return stage(
            summed.shape,
            [*p.site_names, "d"],
            lambda *at: p.rounded(summed[at] if scale is None else summed[at] * scale),
            "output",
        )


def all_of(conditions: Sequence[Expr]) -> Expr:
    """Return the conjunction of one or more conditions."""
    result, *remaining = conditions
    for condition in remaining:
        result = tirx.And(result, condition)
    return result


def split_tap(tap: Expr, window: Sequence[int]) -> list[Expr]:
    """Return the tap of each axis of a flattened tap."""
    inner = []
    for extent in reversed(window[1:]):
        inner.append(tap % extent)
        tap = tap // extent
    return [tap, *reversed(inner)]


def joined_tap(taps: Sequence[Expr], window: Sequence[int]) -> Expr:
    """Return the flattened tap, row-major."""
    joined = taps[0]
    for tap, extent in zip(taps[1:], window[1:]):
        joined = joined * extent + tap
    return joined
