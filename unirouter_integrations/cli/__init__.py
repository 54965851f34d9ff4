"""The command line, `unirouter`."""

from __future__ import annotations

from typing import Any

import click

from unirouter_integrations import __version__
from unirouter_integrations.cli._evaluation import diff, evaluate, report
from unirouter_integrations.cli._options import printable
from unirouter_integrations.cli._profiling import profile
from unirouter_integrations.cli._routers import calibrate, fit, list_models, register, route
from unirouter_integrations.errors import UniRouterError

__all__ = ["main"]


class _Commands(click.Group):
    """Commands whose expected errors are printed as messages, not as tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UniRouterError as error:
            raise click.ClickException(printable(str(error))) from error
        except BrokenPipeError:  # click exits silently
            raise
        except OSError as error:
            raise click.ClickException(printable(f"{type(error).__name__}: {error}")) from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog='Completion: eval "$(_UNIROUTER_COMPLETE=bash_source unirouter)", or zsh_source, or fish_source.',
)
@click.version_option(__version__, prog_name="unirouter")
def main() -> None:
    """Route each prompt to the cheapest chat model that will get it right.

    `fit` finds the kinds of prompts in your prompts, `profile` runs a model over examples, `register` adds models to a
    router, `calibrate` sets the cost weight, and `route` shows which model a prompt goes to.
    """


for _command in (fit, profile, register, list_models, route, calibrate, evaluate, report, diff):
    main.add_command(_command)
