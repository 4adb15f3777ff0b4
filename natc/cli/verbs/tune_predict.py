"""`natc tune --predict`: candidates for a GPU ranked by predicted times, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from natc.cli import output
from natc.host.toolchain import find_nvcc
from natc.spec import KernelSpec
from natc.targets import Target

if TYPE_CHECKING:
    from natc.tune.events import Event
    from natc.tune.search.predicting import Ranking, SavedPrediction

_SHOWN = 10


def tune_predict(
    spec: KernelSpec,
    target: Target,
    operations: Sequence[str],
    shapes: Sequence[tuple[int, ...]] | None,
    candidates: int,
    seed: int,
    *,
    save: bool,
    json: bool,
    show: bool,
) -> None:
    """Print the candidates of each operation, the fastest predicted ones first.

    save: write the best of each as a schedule, where no measured schedule forbids it.
    """
    if target.kind == "cuda":
        find_nvcc()
    from natc.compiler.import_tvm import import_tvm_alone

    import_tvm_alone(target.kind)
    from natc.tune.search.predicting import rank, save_best

    documents = []
    for operation in operations:
        ranking = rank(
            spec,
            target,
            operation=operation,
            shapes=shapes,
            candidates=candidates,
            seed=seed,
            on_event=_tell if show else None,
        )
        saved = save_best(ranking) if save else None
        documents.append({**asdict(ranking), "saved": saved and asdict(saved)})
        if not json:
            _print(ranking, saved)
    if json:
        output.print_json(documents[0] if len(documents) == 1 else {"predictions": documents})


def _tell(event: Event) -> None:
    """Print what happens on stderr."""
    message = getattr(event, "message", "")
    if message:
        output.stderr().print(f"note: {message}")


def _print(ranking: Ranking, saved: SavedPrediction | None) -> None:
    console = output.stdout()
    number = len(ranking.candidates)
    console.print(
        f"{ranking.spec} {ranking.operation} on {ranking.target}: predicted, not measured "
        f"(model {ranking.model}, nvcc {ranking.nvcc}; {number} of "
        f"{ranking.candidates_in_space} candidates)",
        style="bold",
    )
    for each in ranking.candidates[:_SHOWN]:
        words = " ".join(f"{name}={value}" for name, value in each.decisions.items())
        if each.score is None:
            console.print(f"  no prediction: {words}: {each.error}")
            continue
        spills = f", spills {each.spilled_bytes} bytes" if each.spilled_bytes else ""
        console.print(
            f"  {each.score * 1e6:9.1f} us predicted, limited by {each.limiter}: {words} "
            f"({each.registers} registers{spills})"
        )
    if number > _SHOWN:
        console.print(f"  and {number - _SHOWN} more; --json lists all")
    if saved is not None and saved.reason is not None:
        console.print(f"no schedule was written: {saved.reason}")
    elif saved is not None:
        console.print(f"schedule: {saved.path} (predicted, not measured)")
