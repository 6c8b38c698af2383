"""The command group: commands are imported when they are invoked, and errors become messages and exit codes in one place.

Exit codes: 0 fine, 1 the run failed, 2 bad input, 3 the run was fine and a target was missed (a command exits with it itself), 130
interrupted.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

DEBUG = "moesim.debug"


class Lazy(NamedTuple):
    """Where a command is, and its line in the help; so that the help imports nothing."""

    target: str
    line: str


def _remember(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[DEBUG] = True


def debug_option() -> click.Option:
    """Return ``--debug``, which every command accepts."""
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=_remember, help="Show the traceback of an error.")


def debugging(context: click.Context) -> bool:
    """Tell whether ``--debug`` was given."""
    return bool(context.meta.get(DEBUG))


def accept_debug(command: click.Command) -> click.Command:
    """Give a command, and every command of a group, the option ``--debug``."""
    if not any("--debug" in parameter.opts for parameter in command.params):
        command.params.append(debug_option())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            accept_debug(inner)
    return command


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were given."""
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.lazy[cmd_name].target.partition(":")
        return accept_debug(getattr(importlib.import_module(module), name))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of an unknown one say which is near."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            from moesim.base.errors import did_you_mean

            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's contract
        """Write one line for each command without importing it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.line) for name, command in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn what it raises into a message on stderr and an exit code."""
        # Python looks for garbage a last time when it exits; among all that numba and matplotlib leave, that takes as long as loading them.
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)
        if sys.stdout is None:  # closed by the shell, as in >&-
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the program
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.exceptions.Exit, click.ClickException):
            raise
        except BrokenPipeError:
            _quiet_pipe()
            ctx.exit(1)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:  # noqa: BLE001 - the one place where an error becomes a message
            if debugging(ctx):
                import traceback

                click.echo(traceback.format_exc(), err=True, nl=False)
            code, message = explain(error)
            click.echo(message, err=True)
            ctx.exit(code)
        return result


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    from moesim.base.errors import MoesimError, ScenarioError

    if isinstance(error, ScenarioError):
        return error.exit_code, str(error)
    if isinstance(error, MoesimError):
        return error.exit_code, f"Error: {error}"
    if isinstance(error, OSError):
        # Without a file it is a stream: what was printed did not arrive, and that is nobody's bad input.
        where = f"{error.filename}: " if error.filename else "cannot print the result: "
        return 2 if error.filename else 1, f"Error: {where}{(error.strerror or str(error)).lower()}"
    if isinstance(error, MemoryError):
        return 1, f"Error: not enough memory: {error}; fewer workload.tokens_per_gpu, GPUs or layers need less"
    kind = type(error).__name__
    return 1, f"Error: {kind}: {error}\nThis is a defect of moesim or of a plug-in, not of your input; --debug shows where it happened."


def _quiet_pipe() -> None:
    """Point stdout at nothing, so that the interpreter does not complain when it flushes on its way out."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, number)
    os.close(nothing)
