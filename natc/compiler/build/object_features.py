"""Counts a kernel's instructions per multiply-add: features for the model of a search.

The counts come from LLVM's assembly text, in AT&T syntax, of code for x86-64. An instruction
counts as often as it runs: once for each iteration of the loops around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from natc.spec import KernelSpec

# How often a loop runs if its code does not show a constant trip count.
_UNKNOWN_TRIPS = 8.0
# A loop with this share of a function's multiply-adds holds its inner loops.
_NEARLY_ALL = 0.9
_LABEL = re.compile(r"([.\w$]+):")
_VECTOR = re.compile(r"%([xyz])mm\d")
_FLOATS = {"x": 4, "y": 8, "z": 16}
_SPILL = re.compile(r"(?<![\w)])-?\d*\(%rsp\)")
_FMA = re.compile(r"vfn?m(?:add|sub)\d+([ps])([sd])$")
_SHUFFLE = re.compile(
    r"v(?:perm|p?shuf|p?unpck|p?blend|insert|extract|p?align|movs[hl]dup|movddup|movhlps|movlhps"
    r"|hadd|compress|expand)"
)
_KINDS = ("loads", "broadcasts", "shuffles", "stores", "spills", "arithmetic", "scalar")

# At each tap: (products over the head dim, products over the value dim). Operations that are not
# listed compute (1, 1).
_PRODUCTS = {
    "d_query": (2, 1),
    "d_key": (2, 1),
    "gradients": (3, 2),
    "qk": (1, 0),
    "av": (0, 1),
    "inverse_av": (0, 1),
    "sum_rpb": (0, 0),
}


@dataclass
class _Block:
    """Instructions that run one after the other, and the indices of the blocks that may follow."""

    instructions: list[tuple[str, str]] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


def useful_multiply_adds(spec: KernelSpec, operation: str) -> int:
    """Return the multiply-adds that an operation needs for each query (or key), at least 1."""
    head, value = _PRODUCTS.get(operation, (1, 1))
    products = head * spec.head_dim + value * spec.value_dim
    return max(1, products * math.prod(spec.kernel_size))


def object_features(assembly: str, useful: int) -> dict[str, float]:
    """Return numbers about the multiply-adds of a kernel's code; {} for code without any.

    useful: multiply-adds that each query needs (for d_key and d_value, each key). Only
    functions with multiply-adds count. `loads`, `broadcasts`, `shuffles`, `stores`, `spills`
    (loads and stores of a fixed place on the stack), other `arithmetic` of vectors and `scalar`
    instructions: their numbers for 8 multiply-adds; an instruction may count as several kinds,
    such as an FMA that loads. `lanes`: multiply-adds of an average FMA instruction. `issued`:
    multiply-adds in an iteration of the innermost loop over queries that holds nearly all of them,
    divided by `useful`. `code`: instructions in loops.
    """
    totals = dict.fromkeys(_KINDS, 0.0)
    multiply_adds = instructions = code = issued = most = 0.0
    for blocks in _functions(assembly):
        loops = _loops(blocks)
        trips = {header: _trips(blocks, header, body) for header, body in loops.items()}
        around = [
            [h for h, body in loops.items() if index in body] for index in range(len(blocks))
        ]
        times = [math.prod(trips[header] for header in headers) for headers in around]
        lanes = [sum(_lanes(*each) for each in block.instructions) for block in blocks]
        work = [count * n for count, n in zip(times, lanes, strict=True)]
        if not sum(work):
            continue
        multiply_adds += sum(work)
        for index, block in enumerate(blocks):
            code += len(block.instructions) if around[index] else 0
            for operation, operands in block.instructions:
                instructions += times[index] * (_lanes(operation, operands) > 0)
                for kind in _kinds(operation, operands):
                    totals[kind] += times[index]
        if sum(work) > most:
            most = sum(work)
            issued = _in_an_iteration(work, loops, trips, around) / useful
    if not multiply_adds:
        return {}
    counts = {kind: 8 * total / multiply_adds for kind, total in totals.items()}
    return {**counts, "lanes": multiply_adds / instructions, "issued": issued, "code": code}


def _in_an_iteration(
    work: Sequence[float],
    loops: Mapping[int, set[int]],
    trips: Mapping[int, float],
    around: Sequence[Sequence[int]],
) -> float:
    """Return the work of an iteration of the innermost loop that holds nearly all work.

    Only loops without a constant trip count are looked at: they run over queries, not taps.
    """
    total, best = sum(work), (len(work), sum(work))
    for header, body in loops.items():
        inside = sum(work[index] for index in body)
        if trips[header] == _UNKNOWN_TRIPS and inside >= _NEARLY_ALL * total:
            repeated = math.prod(trips[h] for h in around[header])
            best = min(best, (len(body), inside / repeated))
    return best[1]


def _functions(assembly: str) -> Iterator[list[_Block]]:
    """Yield the blocks of each function, the first one being its entry."""
    lines: list[str] = []
    for line in assembly.splitlines():
        match = _LABEL.match(line)
        if match and not re.match(r"\.L(BB|tmp|func_|JTI|CPI)", line):
            yield _blocks(lines)
            lines = []
        lines.append(line)
    yield _blocks(lines)


def _blocks(lines: Sequence[str]) -> list[_Block]:
    """Return a function's blocks, split at its labels and after its jumps."""
    blocks, labels = [_Block()], {}
    for line in lines:
        if match := _LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(_Block())
            labels[match[1]] = len(blocks) - 1
            continue
        operation, _, operands = line.split("#")[0].strip().partition("\t")
        if not line.startswith("\t") or not operation or operation.startswith("."):
            continue
        blocks[-1].instructions.append((operation, operands))
        if operation.startswith("j"):
            blocks.append(_Block())
    for index, block in enumerate(blocks):
        operation, operands = block.instructions[-1] if block.instructions else ("", "")
        if operation.startswith("j") and operands in labels:
            block.successors.append(labels[operands])
        if not operation.startswith(("jmp", "ret")) and index + 1 < len(blocks):
            block.successors.append(index + 1)
    return blocks


def _loops(blocks: Sequence[_Block]) -> dict[int, set[int]]:
    """Return the blocks of each loop, by the loop's first block.

    The code of a compiler has no jump into the middle of a loop, so an edge to a block that a
    search in depth is still inside closes a loop.
    """
    before: dict[int, list[int]] = {index: [] for index in range(len(blocks))}
    for index, block in enumerate(blocks):
        for successor in block.successors:
            before[successor].append(index)
    closing: list[tuple[int, int]] = []
    state = {0: "open"}
    stack = [(0, iter(blocks[0].successors))]
    while stack:
        index, successors = stack[-1]
        successor = next(successors, -1)
        if successor < 0:
            state[index] = "done"
            stack.pop()
        elif successor not in state:
            state[successor] = "open"
            stack.append((successor, iter(blocks[successor].successors)))
        elif state[successor] == "open":
            closing.append((index, successor))
    loops: dict[int, set[int]] = {}
    for last, header in closing:
        body = loops.setdefault(header, {header})
        waiting = [last]
        while waiting:
            index = waiting.pop()
            if index not in body:
                body.add(index)
                waiting += [each for each in before[index] if each in state]
    return loops


def _trips(blocks: Sequence[_Block], header: int, body: set[int]) -> float:
    """Return how often a loop runs, if its counter's start, step and end are constants."""
    for index in body:
        if header not in blocks[index].successors:
            continue
        *before, jump = blocks[index].instructions
        if not jump[0].startswith("j") or not before:
            continue
        operation, operands = before[-1]
        constant, register = _constant_and_register(operands)
        compared = operation.startswith("cmp")
        if register is None or (compared and constant is None):
            continue
        end = (constant if compared else None) or 0
        steps = [
            step
            for each in body
            for instruction in blocks[each].instructions
            if (step := _step(*instruction, register)) is not None
        ]
        start = _start(blocks, header, body, register)
        if start is not None and len(steps) == 1 and steps[0]:
            return max(1.0, (end - start) / steps[0])
    return _UNKNOWN_TRIPS


def _start(blocks: Sequence[_Block], header: int, body: set[int], register: str) -> int | None:
    """Return the constant that a register holds before a loop, or None."""
    for index, block in enumerate(blocks):
        if index in body or header not in block.successors:
            continue
        for operation, operands in reversed(block.instructions):
            constant, written = _constant_and_register(operands)
            if written != register or operation.startswith(("cmp", "test")):
                continue
            if operation.startswith("xor"):
                return 0
            return constant if operation.startswith("mov") else None
    return None


def _step(operation: str, operands: str, register: str) -> int | None:
    """Return the constant that an instruction adds to a register; None if it adds none."""
    constant, written = _constant_and_register(operands)
    if written != register:
        return None
    if operation.startswith(("inc", "dec")):
        return 1 if operation.startswith("inc") else -1
    if operation.startswith(("add", "sub")) and constant is not None:
        return constant if operation.startswith("add") else -constant
    return None


def _constant_and_register(operands: str) -> tuple[int | None, str | None]:
    """Return the constant of `$c, %reg` or `%reg`, if there is one, and the register's number."""
    match = re.fullmatch(r"(?:(?:\$(-?\w+)|[^,]+), )?%(\w+)", operands)
    if match is None:
        return None, None
    name = re.fullmatch(r"[re]?([a-ds][xipl]|\w+?)d?", match[2])
    return (int(match[1], 0) if match[1] else None), name[1] if name else match[2]


def _lanes(operation: str, operands: str) -> int:
    """Return the multiply-adds of an instruction, 0 for any other instruction."""
    match = _FMA.match(operation)
    if match is None:
        return 0
    if match[1] == "s":
        return 1
    width = _VECTOR.search(operands)
    return _FLOATS[width[1]] // (2 if match[2] == "d" else 1) if width else 0


def _kinds(operation: str, operands: str) -> list[str]:
    """Return the kinds of an instruction, some of `_KINDS`; an FMA of registers has none."""
    kinds = []
    address = "(" in operands and not operation.startswith("lea")
    is_store = address and operands.rstrip("}0123456789k{%").endswith(")")
    if _SPILL.search(operands) and address:
        kinds.append("spills")
    if not operation.startswith("v") or not _VECTOR.search(operands):
        return ["scalar", *kinds]
    is_broadcast = "broadcast" in operation or "{1to" in operands
    is_move = operation.startswith("vmov") and not _SHUFFLE.match(operation)
    if address and is_store:
        kinds.append("stores")
    elif address and not is_broadcast:
        kinds.append("loads")
    if is_broadcast:
        kinds.append("broadcasts")
    if _SHUFFLE.match(operation):
        kinds.append("shuffles")
    elif not (is_move or is_broadcast or _FMA.match(operation)):
        kinds.append("arithmetic")
    return kinds
