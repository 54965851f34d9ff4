"""What several commands take, and how they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
existing_folder = click.Path(exists=True, file_okay=False, path_type=Path)

embedder_option = click.option(
    "--embedder", help="Name of the embedder the router was fitted with, as --embedder of fit; not for the local one."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print a value for programs to read."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
