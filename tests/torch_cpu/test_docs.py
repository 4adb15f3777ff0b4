"""The README and the pages in docs/: their code runs, and the names in them exist."""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import doc_blocks
from support.c_library import LibraryDirectory
from support.doc_blocks import PAGES, ROOT, Block, Session, name
from support.loaded_file import load_file
from typer.main import get_command

from natc import compat
from natc.cli import options
from natc.cli.main import app
from natc.spec import KernelSpec, parse_kernel_size
from natc.targets import ARCHS, Target, parse_archs

BLOCKS = [block for page in PAGES for block in doc_blocks.read(page)]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
# Pages that build or tune are run in tests/compiler.
RUN = [page for page in PAGES if doc_blocks.run(page) and not doc_blocks.compiles(page)]

CODE = re.compile(r"^ *```.*?^ *```|`[^`]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(\$ |(natc|pip|python|export|torchrun|tar|openssl|git) )", re.MULTILINE)

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")


OPTIONS = load_file(ROOT / "docs" / "options.py")


def test_the_pages_that_show_code_are_found() -> None:
    assert {"README.md", "docs/use.md", "docs/models.md", "docs/train-nat.md"} <= set(
        map(name, RUN)
    )
    assert len(BLOCKS) > 60


# --- blocks


@pytest.mark.parametrize("page", RUN, ids=name)
def test_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: LibraryDirectory
) -> None:
    try:
        Session(tmp_path, monkeypatch).run_page(page)
    finally:
        compat.uninstall()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_or_says_why_not(block: Block) -> None:
    if block.language in ("python", "bash"):
        if block.reason is not None:
            # A reason that a reader of the source can judge.
            assert re.match(r"(needs|takes|changes|exits) ", block.reason), block
        if block.command is not None:
            assert block.page.name == "README.md", block
            assert f"readme_command {block.command}" in (ROOT / ".ci" / "run").read_text(), block
        return
    assert block.language in ("", "text", "json"), f"{block}: {block.language}"
    # A command that no test checks would go stale.
    command = COMMAND.search(block.code)
    assert not command, f"{block} shows {command and command[0]!r}; begin it with ```bash"


def test_blocks_that_are_not_closed_or_not_seen() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(fences) == 2 * len(doc_blocks.read(page)), name(page)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_commands_of_natc_are_ones_that_it_takes(block: Block) -> None:
    done = subprocess.run(
        ["bash", "-n", "-c", block.code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in doc_blocks.commands(block.code):
        if words[:3] == ["python", "-m", "natc"]:
            words = words[2:]
        if words[0] == "natc":
            problem = command_problem(words[1:])
            assert problem is None, f"{block}: {' '.join(words)}: {problem}"


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == "python" and not block.runs],
    ids=str,
)
def test_names_in_unexecuted_python_exist(block: Block) -> None:
    assert python_problems(block.code) == []


@pytest.mark.parametrize("script", EXAMPLES, ids=name)
def test_examples_run(
    script: Path,
    libraries: LibraryDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


# --- other names on pages


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_to_files(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if not link.startswith(("https://", "http://", "#")):
            assert (page.parent / link.split("#")[0]).exists(), f"{name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_verb_that_a_page_names_exists(page: Path) -> None:
    verbs = {command.name for command in app.registered_commands}
    named = {
        verb
        for code in CODE.findall(page.read_text(encoding="utf-8"))
        for verb in re.findall(r"\bnatc ([a-z]+)\b", code)
    }
    assert named <= verbs, f"{name(page)} names natc {', '.join(sorted(named - verbs))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\btest_\w+\.py\b", page.read_text(encoding="utf-8")))
    there = {path.name for path in ROOT.glob("tests/**/test_*.py")}
    assert named <= there, f"{name(page)} names {', '.join(sorted(named - there))}"


@pytest.mark.parametrize("verb", sorted(OPTIONS.verbs()))
def test_tables_of_options_match_the_command_line(verb: str) -> None:
    page = OPTIONS.page(verb)
    assert page.is_file(), f"natc {verb} has no page {name(page)}"
    text = page.read_text(encoding="utf-8")
    assert text == OPTIONS.with_table(text, verb), "run: python docs/options.py"
    overview = (ROOT / "docs" / "commands" / "README.md").read_text(encoding="utf-8")
    assert f"[`natc {verb}`]({verb}.md)" in overview


def test_the_table_names_every_option_that_the_parser_takes() -> None:
    # The table comes from signatures, the parser from typer: both must have the same options.
    for verb, command in _commands().items():
        words = {
            word for option in command.params for word in (*option.opts, *option.secondary_opts)
        }
        expected = {word for word in words if word.startswith("-")} - {"-h", "--help"}
        table = OPTIONS.table(verb)
        assert set(re.findall(r"`(--?[a-z-]+)`(?=,| \|)", table)) >= expected, verb


def test_every_environment_variable_is_documented() -> None:
    from natc import env

    text = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(NATC_\w+)`", text, flags=re.MULTILINE)) == {
        variable.name for variable in env.ALL
    }


def _words(text: str) -> list[str]:
    return re.findall(r"[\w.()=~/'-]+|[\0…]", text)


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return each word with the next one, except pairs beside a value that a message fills in."""
    words = _words(text)
    return [pair for pair in zip(words, words[1:]) if not {"\0", "…"} & set(pair)]


def _texts_of_the_package() -> Iterator[str]:
    for path in sorted((ROOT / "natc").rglob("*.c")):
        yield from re.findall(r'"([^"\n]*)"', path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "natc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                yield " ".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_that_troubleshooting_explains_are_natcs() -> None:
    # Messages contain values, so only some pairs of words occur in the source.
    source_pairs = {pair for text in _texts_of_the_package() for pair in _pairs(text)}
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    bold = re.findall(r"^\*\*(.+?)\*\*", page, flags=re.MULTILINE | re.DOTALL)
    messages = [message for text in bold for message in re.findall(r"`([^`]+)`", text)]
    assert len(messages) > 20
    for message in messages:
        pairs = _pairs(message)
        matches = sum(pair in source_pairs for pair in pairs)
        assert matches and 3 * matches >= len(pairs), f"natc does not say: {message}"


# --- pictures

PICTURES = load_file(ROOT / "docs" / "pictures.py")
VECTOR_PICTURES = sorted(name for name in PICTURES.PICTURES if name.endswith(".svg"))


def test_every_picture_is_drawn_by_the_script_and_shown() -> None:
    files = {path.name for path in PICTURES.FOLDER.iterdir()}
    assert files == set(PICTURES.PICTURES)
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name for name in files if f"pictures/{name})" in shown} == files


@pytest.mark.parametrize("name", VECTOR_PICTURES)
def test_pictures_are_drawn_from_code_and_results(name: str, tmp_path: Path) -> None:
    committed = (PICTURES.FOLDER / name).read_text(encoding="utf-8")
    drawn_by = re.search(r"Matplotlib v([\d.]+)", committed)
    assert drawn_by
    if drawn_by[1] != PICTURES.matplotlib.__version__:
        pytest.skip(f"matplotlib {drawn_by[1]} drew it, and another version draws other lines")
    PICTURES.PICTURES[name](tmp_path / name)
    drawn = (tmp_path / name).read_text(encoding="utf-8")
    assert _with_pixels(drawn) == _with_pixels(committed), "run: python docs/pictures.py"


def _with_pixels(svg: str) -> str:
    """Return a graphic with its images decoded: their compressed bytes depend on Pillow's zlib."""
    from PIL import Image

    def pixels(match: re.Match[str]) -> str:
        with Image.open(io.BytesIO(base64.b64decode(match[1]))) as image:
            return f"{image.size} {image.tobytes().hex()}"

    return re.sub(r"data:image/png;base64,([^\"]+)", pixels, svg)


# --- checks of commands and code that are not run


def _commands() -> dict[str, Any]:
    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def command_problem(words: list[str]) -> str | None:
    """Return why natc's command line would refuse some words, or None."""
    commands = _commands()
    if words and words[0].startswith("-"):
        top = {opt for option in get_command(app).params for opt in option.opts}
        return None if set(words) <= top | {"--help", "-h"} else "no such option"
    if not words or words[0] not in commands:
        return "no such command"
    try:
        with commands[words[0]].make_context(words[0], list(words[1:])) as context:
            _check_values(words[0], context.params)
    except Exception as error:
        return str(error)
    return None


def _check_values(verb: str, values: dict[str, Any]) -> None:
    """Raise NatcError for a value that the verb would refuse."""
    specs = []
    for size in (values.get("kernel") or "7").split(","):
        sizes = parse_kernel_size(size)
        rank = len(sizes) if len(sizes) > 1 else 2
        specs.append(KernelSpec.make(sizes[0] if len(sizes) == 1 else sizes, rank=rank))
    for text in values.get("shape") or ():
        options.parse_input(text, specs[0])
    if values.get("operations"):
        # natc tune takes single operations, too.
        if verb == "tune":
            options.parse_tuned(values["operations"], specs[0], "llvm")
        else:
            options.parse_operations(values["operations"])
    target, arch = values.get("target"), values.get("arch")
    if target in ARCHS and arch:
        for part in parse_archs(arch) if target == "cuda" else arch.split(","):
            Target(target, part)
    elif target and target not in ARCHS:
        Target.parse(target, arch)


def python_problems(code: str) -> list[str]:
    """Return the problems of code that uses natc: missing names, wrong arguments."""
    tree = ast.parse(code)
    names: dict[str, Any] = {}
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "natc":
                    module = importlib.import_module(alias.name)
                    names[alias.asname or "natc"] = (
                        module if alias.asname else importlib.import_module("natc")
                    )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "natc":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if hasattr(module, alias.name):
                    names[alias.asname or alias.name] = getattr(module, alias.name)
                else:
                    problems.append(f"{node.module} has no {alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            problems += _lookup(node, names)[1]
        elif isinstance(node, ast.Call):
            function, _ = _lookup(node.func, names)
            if callable(function):
                problems += _call_problems(node, function)
    return sorted(set(problems))


def _lookup(node: ast.expr, names: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the object that a name or attribute of natc stands for, None if it is not natc's."""
    if isinstance(node, ast.Name):
        return names.get(node.id), []
    if not isinstance(node, ast.Attribute):
        return None, []
    owner, problems = _lookup(node.value, names)
    if owner is None or problems:
        return None, problems
    if not hasattr(owner, node.attr):
        return None, [f"{ast.unparse(node.value)} has no {node.attr}"]
    return getattr(owner, node.attr), []


def _call_problems(node: ast.Call, function: Any) -> list[str]:
    keywords = {word.arg: None for word in node.keywords if word.arg}
    unpacked = len(keywords) != len(node.keywords) or any(
        isinstance(argument, ast.Starred) for argument in node.args
    )
    try:
        signature = inspect.signature(function)
    except ValueError:
        return []
    # natc's functions take other arguments only to refuse them.
    allowed = [each for each in signature.parameters.values() if each.name != "unsupported"]
    signature = signature.replace(parameters=allowed)
    bind = signature.bind_partial if unpacked else signature.bind
    arguments = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    try:
        bind(*arguments, **keywords)
    except TypeError as error:
        return [f"{ast.unparse(node.func)}: {error}"]
    return []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("dance", "no such command"),
        ("build --kernel 7 --colour red", "--colour"),
        ("build", "kernel"),
        ("build --kernel 7 --dtype float8", "float8"),
        ("build --kernel 64", "64"),
        ("tune --kernel 7 --shape 56x56", "56x56"),
        ("build --kernel 7 --target cuda --arch sm_12", "sm_12"),
        ("build --kernel 7 --target opencl", "opencl"),
        ("build --kernel 7 --operations dance", "dance"),
        ("build --kernel 7 --operations d_query", "d_query"),
        ("tune --kernel 7 --operations dance", "dance"),
        ("--vresion", "no such option"),
    ],
)
def test_wrong_commands_are_found(words: str, problem: str) -> None:
    assert problem in (command_problem(words.split()) or "")


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "list --json",
        "build -k 7x5 --target cuda --arch sm_80,sm_90 -o lib",
        "tune --kernel 7 --operations forward,d_query --shape 1x14x14x2",
    ],
)
def test_right_commands_are_taken(words: str) -> None:
    assert command_problem(words.split()) is None


@pytest.mark.parametrize(
    "code",
    [
        "import natc\nnatc.na4d(1)",
        "from natc.nn import NeighborhoodAttention4D",
        "import natc\nnatc.na2d(1, 2, 3, 7, dilution=2)",
        "import natc\nnatc.na2d(1, 2)",
        "from natc.spec import KernelSpec\nKernelSpec.made(7)",
    ],
)
def test_wrong_python_is_found(code: str) -> None:
    assert python_problems(code)


def test_commands_are_split_as_a_shell_does() -> None:
    code = "A=1 natc build --kernel 7 \\\n  -o 'a b' >log && natc list | head  # natc dance\n"
    assert doc_blocks.commands(code) == [
        ["natc", "build", "--kernel", "7", "-o", "a b"],
        ["natc", "list"],
        ["head"],
    ]
