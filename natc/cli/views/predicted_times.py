"""Predicted times of the operations of a CUDA library, and what limits each, for `natc show`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from natc.cli import options, output
from natc.cli.output import seconds_text
from natc.errors import NatcError
from natc.targets import Target

if TYPE_CHECKING:
    from natc.runtime import Library


def of_library(library: Library) -> list[dict[str, Any]]:
    """Return the predicted times of a library for each GPU that it has machine code for.

    They are for the first of NAT's levels. A library for CPUs has none. `problem` says why there
    are none for a GPU.
    """
    if library.manifest.target.kind != "cuda":
        return []
    return [_of_target(library, target) for target in library.targets]


def _of_target(library: Library, target: Target) -> dict[str, Any]:
    facts: dict[str, Any] = {"target": target.name, "evidence": "predicted", "problem": None}
    try:
        options.require_compiler("show")
        from natc.compiler.import_tvm import import_tvm_alone

        import_tvm_alone("cuda")
        from natc.compiler.gpu_model.architectures import architecture
        from natc.compiler.gpu_model.libraries import predict_library
        from natc.compiler.gpu_model.timing import VERSION
        from natc.tune.measure.workload import default_shapes

        facts["chip"] = architecture(target.arch).chip
        facts["model"] = VERSION
        shape = default_shapes(library.spec, target)[0]
        facts["shape"] = list(shape)
        record = library.manifest.schedule.get(target.arch) or {}
        entries = library.manifest.entries
        predictions = predict_library(
            library.path,
            library.spec,
            target,
            record.get("decisions") or {},
            {operation: names[target.arch] for operation, names in entries.items()},
            shape,
        )
        facts["operations"] = [asdict(each) for each in predictions]
    except NatcError as error:
        facts["problem"] = str(error)
    return facts


def show(facts: dict[str, Any]) -> None:
    """Print one of the items that `of_library` returned on stdout."""
    console = output.stdout()
    if facts["problem"]:
        # The output of a program may have several lines.
        problem = " ".join(facts["problem"].split())
        console.print(f"no predicted times for {facts['target']}: {problem}")
        return
    shape = "x".join(map(str, facts["shape"]))
    console.print(
        f"predicted times for {facts['target']} ({facts['chip']}), input {shape}", style="bold"
    )
    console.print(f"  by model {facts['model']}, not measured")
    table = output.table("", "operation", "predicted", "limited by", right=("predicted",))
    for row in facts["operations"]:
        seconds = row["seconds"]
        table.add_row(
            row["operation"],
            "-" if seconds is None else seconds_text(seconds),
            row["limiter"] or f"no prediction: {row['problem']}",
        )
    output.print_table(table)
