"""Writes the tables of options in docs/commands/ from the command line: `python docs/options.py`.

The pages contain the tables, so that they can be read anywhere; a test compares them with the
command line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer import Context
from typer.models import ArgumentInfo, ParameterInfo
from typer.utils import get_params_from_function

# The options of this checkout, whichever natc is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))
from natc.cli.main import app

PAGES = Path(__file__).parent / "commands"
PLACE = re.compile(
    r"(<!-- options: made by docs/options.py -->\n).*?(<!-- end of options -->)", re.DOTALL
)


def verbs() -> dict[str, Callable[..., None]]:
    """Return the function behind each verb that the command line shows."""
    return {
        command.name: command.callback
        for command in app.registered_commands
        if command.name and command.callback and not command.hidden
    }


def page(verb: str) -> Path:
    """Return the page of a verb."""
    return PAGES / f"{verb}.md"


def with_table(text: str, verb: str) -> str:
    """Return the text of a verb's page with a fresh table of options.

    Raises ValueError unless the page has exactly one place for it.
    """
    if len(PLACE.findall(text)) != 1:
        raise ValueError(f"{page(verb)} has no place for its options, or several.")
    return PLACE.sub(lambda match: match[1] + table(verb) + match[2], text)


def table(verb: str) -> str:
    """Return the options and arguments of a verb as a table in Markdown."""
    rows = ["| option | meaning | default |", "|---|---|---|"]
    for parameter in get_params_from_function(verbs()[verb]).values():
        info = parameter.default
        if parameter.annotation is Context:
            continue
        assert isinstance(info, ParameterInfo), f"natc {verb} says nothing about {parameter.name}"
        if info.hidden:
            continue
        names = _names(info, parameter.name)
        choices = _choices(parameter.annotation)
        meaning = " ".join(part for part in (info.help, choices) if part)
        cells = (", ".join(f"`{name}`" for name in names), meaning, _default(info, names))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _names(info: ParameterInfo, name: str) -> list[str]:
    if isinstance(info, ArgumentInfo):
        return [info.metavar or name.upper()]
    return [name for declared in info.param_decls or () for name in declared.split("/")]


def _default(info: ParameterInfo, names: list[str]) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    value = info.default
    if value is ...:
        return "required"
    if value is None or value is False:
        return ""
    if value is True:
        return f"`{names[0]}`"
    return f"`{value}`"


def _choices(annotation: Any) -> str:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return ", ".join(f"`{choice}`" for choice in get_args(part)) + "."
    return ""


def main() -> None:
    """Write the table of every verb into its page."""
    for verb in verbs():
        text = page(verb).read_text(encoding="utf-8")
        page(verb).write_text(with_table(text, verb), encoding="utf-8")


if __name__ == "__main__":
    main()
