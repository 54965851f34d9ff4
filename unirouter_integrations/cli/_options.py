"""Options that several commands have, and how commands print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
existing_folder = click.Path(exists=True, file_okay=False, path_type=Path)

new_embedder_option = click.option(
    "--embedder",
    default="local",
    show_default=True,
    help='"local", onnx:FOLDER, model2vec:NAME, or the name of a SentenceTransformer.',
)
fitted_embedder_option = click.option(
    "--embedder",
    help="The embedder that the router was fitted with, as in `fit --embedder`. Not needed for the local one.",
)
among_option = click.option("--among", help="Names of the candidates, separated by commas. All models by default.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def split_names(text: str | None) -> list[str] | None:
    """Split names at commas; None if there is no text."""
    return None if text is None else [name.strip() for name in text.split(",")]


def printable(text: str) -> str:
    """Escape what could give orders to a terminal: names in a router and errors of a provider may come from anybody."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def echo(text: object, *, err: bool = False) -> None:
    """Print a text for people, to standard output or to standard error."""
    click.echo(printable(str(text)), err=err)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    click.echo(text if text.isprintable() else json.dumps(value, allow_nan=False))
