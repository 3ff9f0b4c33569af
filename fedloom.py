"""The front door: the ``fedloom`` command.

Each package brings its own commands in a ``cli`` module; they are mounted here and loaded only when used, so that
``fedloom --help`` answers at once and the coordinator's commands never load a deep-learning framework. This module is
also where packages that may not import each other meet: it lends the coordinator a way to check the learning tables of
a configuration and to have the first model made.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wire import FederationConfig

__all__ = ["main"]
__version__ = "0.1.0"

# name -> (module:typer app, one line of help)
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "simulate": ("simulation.cli:simulate_app", "Run a whole federation on this machine and write a report."),
    "init": ("simulation.cli:init_app", "Write a commented federation.toml."),
    "coordinator": (
        "coordinator.cli:app",
        "Run the federation: start, invite, members, status, watch, export, revoke, stop.",
    ),
    "federation": (
        "coordinator.federation_cli:app",
        "Keep the federation root apart from the coordinator: init, certify, remove, show.",
    ),
    "participant": ("participant.cli:app", "Take part with a site's data: join, run, status."),
    "model": ("core_model.cli:app", "Make or look at a checkpoint of the shared model."),
    "data": ("core_model.cli:data_app", "List and prepare the data sets fedloom knows."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        import typer.main

        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


class _Learning:
    """What the coordinator borrows from ``core_model``, which it may not import (see ``coordinator.cli.Learning``)."""

    def check(self, config: FederationConfig, source: str) -> FederationConfig:
        """The configuration with its learning tables validated and completed. Loads no torch."""
        from core_model.config import LearningConfig
        from wire import validate

        learning = validate(LearningConfig, config.learning(), source)
        return config.with_learning(learning.model_dump(mode="json"))

    def metrics(self, config: FederationConfig) -> tuple[str, ...]:
        """Names of the metrics that the task reports."""
        from core_model.config import LearningConfig

        return LearningConfig.model_validate(config.learning()).metrics()

    def make_initial(self, config: FederationConfig, path: Path) -> Path:
        """Have version 0 made by a process of its own, so that the daemon never loads a model."""
        import json
        import subprocess

        from wire import DataError

        if config.coordinator.initial_model is not None:
            return config.coordinator.initial_model
        tables = path.with_suffix(".json")
        tables.write_text(json.dumps(config.learning()), encoding="utf-8")
        seed = str(config.rounds.seed)
        command = [sys.executable, "-m", "fedloom", "model", "init", "--tables", str(tables)]
        made = subprocess.run(
            [*command, "--out", str(path), "--seed", seed, "--json"], capture_output=True, text=True, check=False
        )
        tables.unlink()
        if made.returncode != 0:
            raise DataError(
                f"version 0 of the model couldn't be made: {(made.stderr or made.stdout).strip()[-500:]}",
                "Where torch isn't installed, make it elsewhere (fedloom model init --config federation.toml "
                "--out FILE) and name the file in [coordinator] initial_model.",
            )
        return path


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedloom")
def _root() -> None:
    """Train one model across institutions that keep their data."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    An error that carries a ``code`` and a ``hint`` (every error that a user can cause does) is printed as two lines, or
    as JSON where ``--json`` was given; anything else is a defect of ours and keeps its traceback.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says about handshakes, we say better
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = _root.main(args=arguments, prog_name="fedloom", standalone_mode=False, obj=_Learning())
    except click.exceptions.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if not hasattr(error, "code") or not hasattr(error, "hint"):
            raise
        _show(error, as_json="--json" in arguments)
        return int(getattr(error, "exit_code", 1))
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    sys.stderr.write("\nInterrupted.\n")
    return 130


def _show(error: Any, *, as_json: bool) -> None:
    message = getattr(error, "message", str(error))
    if as_json:
        import json

        body = {"error": {"code": error.code, "message": message, "hint": error.hint}}
        sys.stdout.write(json.dumps(body) + "\n")
        return
    sys.stderr.write(f"Error ({error.code}): {message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")


if __name__ == "__main__":
    sys.exit(main())
