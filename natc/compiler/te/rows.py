"""RowGather: gathers a row of a window as whole vectors, for spaces that keep taps in lanes.

It computes the same as `te.gather`. Here the taps of a row are adjacent in memory and fill whole
vectors. So the tensors that taps read are copied first: heads first, with the members of a
dilation group next to each other. The last axis of the window is padded with taps that have no
pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tvm import te, tirx
from tvm.ir import Expr

from natc.compiler.te.axis import Axis, axes_of, skippable
from natc.compiler.te.gather import Gather, Pairwise
from natc.compiler.te.problem import Problem, stage


def filled_up(taps: int, lanes: int) -> int:
    """Round `taps` up to a multiple of `lanes`."""
    return math.ceil(taps / lanes) * lanes


class RowGather(Gather):
    """The sites and taps of one operation, `lanes` taps of a row in a vector.

    copies: whether the vectors of taps are copied too; otherwise they are read in place. A tap
    without a pair reads some valid token. A space must skip such a tap where it multiplies the
    token's vector by the weight 0, because the product with an infinity or a NaN is NaN.
    """

    # Both sides are computed, so that the taps of a row stay in the lanes of a vector.
    _choose = staticmethod(tirx.Select)

    def __init__(
        self,
        problem: Problem,
        *,
        from_keys: bool,
        lanes: int,
        tables: bool = True,
        copies: bool = True,
    ) -> None:
        axes = axes_of(problem, from_keys=from_keys)
        self._last = axes[-1].taps
        axes[-1] = replace(axes[-1], taps=filled_up(axes[-1].taps, lanes))
        axes = skippable(problem, axes) if tables else axes
        super().__init__(problem, from_keys=from_keys, axes=axes)
        self._from_keys, self._lanes, self._copies = from_keys, lanes, copies
        self._slots = _Slots(problem, axes[-1], lanes)

    def positions(self, site: Sequence[Expr], tap: Sequence[Expr]) -> list[Expr]:
        """Return the position of a tap on each axis; a padding tap has its row's last position."""
        return super().positions(site, [*tap[:-1], te.min(tap[-1], self._last - 1)])

    def bias(self, rpb: te.Tensor) -> Pairwise:
        """Return the relative positional bias of each pair.

        If sites are keys, offsets descend from tap to tap; a reversed copy of the bias makes them
        ascend.
        """
        p = self.problem
        heads, *offsets = rpb.shape
        most = offsets[-1] - 1

        def element(h: tirx.Var, *r: tirx.Var) -> Expr:
            at = most - r[-1] if self._from_keys else r[-1]
            exists = at >= 0 if self._from_keys else at <= most
            return tirx.if_then_else(exists, rpb(h, *r[:-1], at), p.const(0.0))

        padded = stage(
            (heads, *offsets[:-1], most + self.window[-1]),
            ["h", *(f"r{axis}" for axis in range(p.rank))],
            element,
            "bias_padded",
        )

        def value(site: Sequence[Expr], tap: Sequence[Expr]) -> Expr:
            _, positions, _ = p.parts(site)
            *rows, last = [a.offset(i, t) for a, i, t in zip(self.axes, positions, tap)]
            if self._from_keys:
                last = most - self.axes[-1].offset(positions[-1], tirx.const(0)) + tap[-1]
            return p.bias_at(padded, site, [*rows, last])

        return value

    def scalar_of_site(self, tensor: te.Tensor) -> Pairwise:
        """Return the site's element of a tensor without channels, for each pair."""
        p = self.problem
        return lambda site, tap: p.read(tensor, site, p.parts(site)[1])

    def scalar_of_tap(self, tensor: te.Tensor) -> Pairwise:
        """Return the tap's element of a tensor without channels, for each pair."""
        copied = self._copied(tensor)
        return lambda site, tap: copied[self._token(tensor, site, tap)]

    def tap_vector(self, tensor: te.Tensor, name: str | None = None) -> te.Tensor:
        """Return a stage with the vector of each tap; from copies, in the accumulator's dtype."""
        if not self._copies:
            return super().tap_vector(tensor, name)
        p, n = self.problem, len(self.problem.site_names)
        copied = self._copied(tensor)
        return stage(
            (*p.site_shape, *self.window, tensor.shape[-1]),
            [*p.site_names, *p.tap_names, "d"],
            lambda *at: copied(*self._token(tensor, at[:n], at[n:-1]), at[-1]),
            name or f"{tensor.name}_tap",
        )

    def site_vector(self, tensor: te.Tensor) -> te.Tensor:
        """Return a stage with the vector of each site, in the accumulator's dtype."""
        p = self.problem

        def element(*at: tirx.Var) -> Expr:
            _, positions, _ = p.parts(at[:-1])
            return p.accumulate(p.read(tensor, at[:-1], positions, at[-1]))

        shape = (*p.site_shape, tensor.shape[-1])
        return stage(shape, [*p.site_names, "d"], element, f"{tensor.name}_held")

    def _copied(self, tensor: te.Tensor) -> te.Tensor:
        """Copy `[b, *s, h, ...]` to `[b, h, tokens, ...]`, in the accumulator's dtype.

        The copy has `lanes` more tokens, since a vector of taps may reach beyond the last one.
        """
        p = self.problem
        batch, *sizes = tensor.shape[: 1 + p.rank]
        heads, *channels = tensor.shape[1 + p.rank :]
        tokens = math.prod(sizes[1:], start=sizes[0])

        def element(b: tirx.Var, h: tirx.Var, i: tirx.Var, *d: tirx.Var) -> Expr:
            # The additional tokens repeat the last one.
            quotient, positions = te.min(i, tokens - 1), []
            for size in reversed(sizes[1:]):
                positions.append(tirx.truncmod(quotient, size))
                quotient = tirx.truncdiv(quotient, size)
            last, *rows = [*positions, quotient]
            return p.accumulate(tensor(b, *reversed(rows), self._slots.position[last], h, *d))

        names = ["b", "h", "i", *("d" for _ in channels)]
        shape = (batch, heads, tokens + self._lanes, *channels)
        return stage(shape, names, element, f"{tensor.name}_copied")

    def _token(
        self, tensor: te.Tensor, site: Sequence[Expr], tap: Sequence[Expr]
    ) -> tuple[Expr, Expr, Expr]:
        """Return the index of a tap in a copy: (batch, head, token)."""
        p = self.problem
        _, positions, _ = p.parts(site)
        row: Expr = tirx.const(0)
        for axis, size, i, t in zip(self.axes[:-1], p.sizes[1:], positions, tap):
            row = (row + axis.position[i, t]) * size
        first = self._slots.of_vector[positions[-1], tirx.floordiv(tap[-1], self._lanes)]
        batch, head = p.entry(tensor, site)
        return batch, head, row + first + tirx.floormod(tap[-1], self._lanes)


class _Slots:
    """The positions of the last axis in an order in which a dilation group's members are adjacent.

    position [size]: the position in each slot. of_vector [size, vectors]: the slot of the first
    tap of each vector of a site's taps. A vector without a pair gets the slot of the first vector.
    """

    def __init__(self, p: Problem, axis: Axis, lanes: int) -> None:
        number = p.rank - 1
        size, dilation = p.sizes[number], p.dilation[number]
        # A group has `members` members; the first `longer` groups have one more.
        members, longer = tirx.truncdiv(size, dilation), tirx.truncmod(size, dilation)

        def position(slot: tirx.Var) -> Expr:
            split = longer * (members + 1)
            # Clamped because both branches of a Select are evaluated.
            behind, divisor = te.max(slot - split, 0), te.max(members, 1)
            group = longer + tirx.truncdiv(behind, divisor)
            group = tirx.Select(slot < split, tirx.truncdiv(slot, members + 1), group)
            member = tirx.Select(
                slot < split, tirx.truncmod(slot, members + 1), tirx.truncmod(behind, divisor)
            )
            return member * dilation + group

        def slot(site: tirx.Var, vector: tirx.Var) -> Expr:
            first = axis.position[site, 0]
            group = tirx.truncmod(first, dilation)
            start = group * members + te.min(group, longer) + tirx.truncdiv(first, dilation)
            tap = vector * lanes
            return start + tirx.Select(axis.attended(site, tap), tap, 0)

        self.position = stage((size,), ["i"], position, f"member_{number}")
        vectors = axis.taps // lanes
        self.of_vector = stage((size, vectors), ["i", "v"], slot, f"slot_{number}")
