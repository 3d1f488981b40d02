"""What every command shares: options, errors as one line, and records as tables or JSON.

stdout carries data only; progress and logs go to stderr. Nothing heavy is imported here.
"""

import contextlib
import errno
import importlib
import os
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.runtime import guard

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])

PLAIN = (str, int, float)
INTERRUPTED = 130
"""The exit status after Ctrl-C, as of every program: 128 and the number of SIGINT."""
ALLOW = "FERRY_ALLOW"
"""The variable that names what a processor may lack of what a model needs."""
EXTRA_PACKAGES = {
    *("cryptography", "dvc", "filelock", "jinja2", "matplotlib", "mlflow", "onnx", "onnxscript"),
    *("optuna", "pydantic", "pydantic_core", "pynvml", "requests", "safetensors", "scipy"),
    *("sklearn", "sympy", "torch", "yaml"),
}
"""Packages that the extra `pipeline` installs."""
OTHER_EXTRAS = {"ray": "ray"}
"""Packages that are imported where they are used, and the extra that installs each."""


def terminal_columns() -> int:
    """The width of the terminal, 80 without one; click would import shutil to find it out."""
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 80


# Settings of both groups: `FERRY_TRAIN_DEVICE` is `ferry train --device`.
SETTINGS = {
    "auto_envvar_prefix": "FERRY",
    "help_option_names": ["-h", "--help"],
    "terminal_width": min(terminal_columns(), 80) - 2,
}


def complete_path(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Leave it to the shell to complete the name of a file or a folder."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


class PathType(click.ParamType["Path"]):
    """Makes a path of what was typed; `click.Path` would import pathlib for every `--help`."""

    name = "path"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002 - click's signature
    ) -> "Path":
        """Make a path of what was typed."""
        from pathlib import Path

        return Path(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Leave it to the shell."""
        return complete_path(ctx, param, incomplete)


PATH = PathType()


def shared_option(command: Command) -> Command:
    """Add `--shared`, which the command receives as a mapping from names to values."""

    def pairs(_context: click.Context, _option: click.Parameter, given: Any) -> dict[str, str]:
        for one in given:
            if not one.partition("=")[0] or "=" not in one:
                raise click.BadParameter(f"{one!r} must be NAME=VALUE")
        return dict(one.split("=", 1) for one in given)

    option = click.option(
        "--shared",
        metavar="NAME=VALUE",
        multiple=True,
        callback=pairs,
        help="An input that is the same for all rows: a number, or a list as JSON; repeatable.",
    )
    return option(command)


def task_option(command: Command) -> Command:
    """Add `--task`, the user's word where a model does not say what it tells."""
    option = click.option(
        "--task",
        type=click.Choice(["classification", "regression"]),
        help="What the model tells, where it does not say so: scores of classes, or no classes.",
    )
    return option(command)


def allow_option(command: Command) -> Command:
    """Add `--allow`, which lets a model run on a processor that lacks what it needs."""

    def remember(_context: click.Context, _option: click.Parameter, needs: str | None) -> None:
        if needs:  # for the processes that a command starts as well
            os.environ[ALLOW] = needs

    option = click.option(
        "--allow",
        type=click.Choice(["vnni"]),
        envvar=ALLOW,
        expose_value=False,
        callback=remember,
        help="Run a model that needs this of the processor, on one that lacks it.",
    )
    return option(command)


Sections = Mapping[str, Mapping[str, tuple[str, str]]]
"""The commands of a group: title, name, the package with the command's module, first line of help.

The module and the command in it have the command's name.
"""


class Commands(click.Group):
    """A group whose commands turn a user's mistake into one line on stderr, never a traceback.

    Exit status: 0 done, 1 failed or a gate not met, 2 usage.
    """

    def __init__(self, sections: Sections = MappingProxyType({}), **settings: Any) -> None:
        places = {name: place for part in sections.values() for name, place in part.items()}
        super().__init__(commands=_LoadedWhenNamed(places), **settings)
        self.sections = sections

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write a section for each title, without loading any command."""
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command; an error is one line, as a terminal may show it."""
        with _errors_on_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors of ferry and of the system, and missing extras, are one line."""
        with _errors_on_one_line(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors_on_one_line(ctx: click.Context) -> Iterator[None]:
    from serving.errors import FerryError

    try:
        yield
    except click.ClickException as error:
        raise _for_terminal(error) from error.__cause__
    except FerryError as error:
        raise _OneLineError(str(error), error.exit_code) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRA_PACKAGES and package not in OTHER_EXTRAS:
            raise
        command = f"{ctx.info_name} {ctx.invoked_subcommand or ''}".strip()
        install = f"pip install 'onnx-ferry[{OTHER_EXTRAS.get(package, 'pipeline')}]'"
        raise _OneLineError(f"`{command}` needs {package}: {install}", 1) from error
    except KeyboardInterrupt:
        click.echo(err=True)  # after the ^C of the terminal
        ctx.exit(INTERRUPTED)
    except BrokenPipeError:
        import signal

        _settle_stdout()
        ctx.exit(128 + signal.SIGPIPE)
    except (OSError, MemoryError) as error:
        _settle_stdout()
        raise _OneLineError(_reason_of(error), 1) from error


def _reason_of(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        limit = guard.memory_limit()
        tail = f" (--max-memory {limit:.3g})" if limit else ""
        return f"out of memory: {str(error) or 'there is no more'}{tail}"
    if error.errno == errno.EBADF:
        return "stdout is closed"
    name, reason = error.filename2 or error.filename, error.strerror or str(error)
    return f"{name}: {reason}" if name else reason


def _for_terminal(error: click.ClickException) -> click.ClickException:
    from serving.errors import for_terminal

    error.message = for_terminal(error.message)  # type: ignore[misc]  # click never alters it
    return error


class _LoadedWhenNamed(UserDict[str, Any]):
    """The commands of a group by name; a command's module is imported when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        found = self.data[name]
        if isinstance(found, tuple):
            found = self.data[name] = _load_command(name, *found)
        command: click.Command = found
        return command


def _load_command(name: str, package: str, words: str) -> click.Command:
    """Import a command, whose options may also come from FERRY_COMMAND_OPTION."""
    command: click.Command = getattr(importlib.import_module(f"{package}.{name}"), name)
    command.short_help = words
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            flag = max(option.opts, key=len).lstrip("-")
            option.envvar = f"FERRY_{name}_{flag}".upper().replace("-", "_")
    return command


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage, which there is none of in what is imported."""
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is there later
        gc.enable()


def json_option(command: Command) -> Command:
    """Add `--json`, which the command receives as `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    return option(command)


def log_to_stderr() -> None:
    """Send the progress and the warnings of ferry's modules to stderr.

    They, the warnings of others, and what ferry does not expect are shown as a terminal may.
    """
    import logging

    from serving.errors import for_terminal

    class Shown(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = for_terminal(super().format(record))
            guard.step(text)
            return text

    handler = logging.StreamHandler()
    for one in filter(None, (handler, logging.lastResort)):
        one.setFormatter(Shown("%(message)s"))
    sys.excepthook = _show_unexpected
    for package in ("pipeline", "serving"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False


def _show_unexpected(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    import traceback

    note("".join(traceback.format_exception(kind, error, trace)).rstrip())


def program() -> str:
    """How this program is called from here: by its path where `ferry` is not it."""
    import shlex
    import shutil
    from pathlib import Path

    script = Path(sys.executable).with_name("ferry")
    in_environment = sys.prefix != sys.base_prefix
    if not in_environment or shutil.which("ferry") == str(script) or not script.exists():
        return "ferry"
    here = script.is_relative_to(Path.cwd())
    return shlex.quote(str(script.relative_to(Path.cwd()) if here else script))


def note(message: str) -> None:
    """Print a message for the person at the terminal, to stderr."""
    from serving.errors import for_terminal

    guard.step(message)
    click.echo(for_terminal(message), err=True)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Give a function that shows the current step, on one line of the terminal; gone at the end."""
    from serving.errors import on_one_line

    terminal = sys.stderr.isatty()

    def log(step: str) -> None:
        guard.step(step)
        if terminal:
            click.echo(f"\r\x1b[K{on_one_line(step)[: terminal_columns() - 1]}", err=True, nl=False)

    try:
        yield log
    finally:
        log("")


def show(record: Any, *, as_json: bool, text: str) -> None:
    """Print a command's result to stdout: as JSON, or as the given text."""
    from serving.errors import for_terminal
    from serving.files import dump_json

    click.echo(dump_json(record) if as_json else for_terminal(text), nl=not as_json)


def summary(record: Any, names: Sequence[str] | None = None) -> str:
    """Lay out the plain values of a record or a mapping, one per line; `names` selects."""
    values = record
    if not isinstance(record, dict):
        values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    plain = {name: value for name, value in values.items() if isinstance(value, PLAIN)}
    shown = [name for name in plain if names is None or name in names]
    width = max(map(len, shown), default=0)
    return "\n".join(f"{name:<{width}}  {_text(plain[name])}" for name in shown)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


DASH = "–"
"""What a table says where there is no value."""


def number(value: float | None, form: str = "", unit: str = "") -> str:
    """A number as a person reads it; a dash for None."""
    return DASH if value is None else f"{value:{form}}{unit}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in columns; the first column is flush left, the others flush right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(_line(line, widths) for line in lines)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of words in columns, all flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _settle_stdout() -> None:
    """Drop what stdout will not take (its reader has left, its disk is full), so that exit can."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _OneLineError(click.ClickException):
    """An error that click prints in one line before it exits with the given status."""

    def __init__(self, message: str, exit_code: int) -> None:
        from serving.errors import on_one_line

        super().__init__(on_one_line(message))
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class
