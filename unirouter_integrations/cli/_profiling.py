"""`unirouter profile`: profile a chat model for a saved router."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from unirouter_integrations._checks import shown
from unirouter_integrations.cli._options import (
    echo,
    existing_file,
    existing_folder,
    fitted_embedder_option,
    json_option,
    print_json,
)
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError, UniRouterError
from unirouter_integrations.grading import Price

_N_PRICES = (2, 3)  # input and output, and perhaps cached input
_OBJECT = "py:"
_URL_SCHEMES = ("http://", "https://")


@click.command(short_help="Run a model over examples, and grade and price its answers.")
@click.option(
    "--model",
    required=True,
    help="A name for init_chat_model (openai:gpt-5-mini), an OpenAI-compatible URL followed by # and the model "
    "(http://localhost:8000/v1#qwen), or a Python object (py:module:attribute), whose module is run.",
)
@click.option("--name", help="The name of the model in the router. By default the part of --model after : or #.")
@click.option("--router", required=True, type=existing_folder, help="The saved router that the profile is for.")
@click.option(
    "--examples", required=True, type=existing_file, help="A .jsonl, .csv or .parquet file with prompt and reference."
)
@click.option("--scorer", default="exact", show_default=True, help="The name of a scorer, or py:module:attribute.")
@click.option("--price", help="USD per million tokens, IN,OUT or IN,OUT,CACHED. By default it is looked up.")
@click.option(
    "--journal", type=click.Path(dir_okay=False, path_type=Path), help="File that keeps every answer, to resume from."
)
@click.option("-n", "n", type=click.IntRange(1), help="Use only this many examples, the most informative ones.")
@click.option("--max-cost", type=click.FloatRange(0), help="Stop before more USD than this are spent.")
@click.option("--max-concurrency", default=8, show_default=True, type=click.IntRange(1), help="Calls at the same time.")
@click.option("--requests-per-minute", type=click.FloatRange(0, min_open=True), help="Calls per minute.")
@click.option(
    "--timeout", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Seconds per call."
)
@click.option(
    "--on-failure",
    type=click.Choice(["raise", "skip", "wrong"]),
    default="raise",
    show_default=True,
    help="What to do with an example whose call failed.",
)
@click.option(
    "--stop-when",
    type=click.FloatRange(0, 1),
    help="Stop when the routing of at most this share of prompts is undecided.",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Save the profile in this folder.")
@click.option("--register", "registers", is_flag=True, help="Register the profile in the router.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Only estimate the cost. Makes no call.")
@fitted_embedder_option
@json_option
def profile(
    *,
    model: str,
    name: str | None,
    router: Path,
    examples: Path,
    scorer: str,
    price: str | None,
    journal: Path | None,
    n: int | None,
    output: Path | None,
    registers: bool,
    only_estimate: bool,
    embedder: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run a model over examples, grade and price its answers, and show how it would change the routing.

    Without --register, the router stays as it is. --output saves the profile for `unirouter register`.
    """
    from unirouter_integrations import UniRouter, compare, profiling

    loaded = UniRouter.load(router, embedder=embedder)
    is_url = model.startswith(_URL_SCHEMES)
    name = name or model.removeprefix(_OBJECT).partition("#" if is_url else ":")[2] or model
    if is_url and price is None:
        msg = "A model behind a URL needs --price IN,OUT in USD per million tokens, or 0,0 if it is free."
        raise InvalidInputError(msg)
    chat_model = _model(model)
    common: dict[str, Any] = {
        "scorer": _object(scorer) if scorer.startswith(_OBJECT) else scorer,
        "price": _price_of(model, price),
        "journal": journal,
        "n": n,
    }
    if only_estimate:
        estimate = profiling.estimate_cost(name, chat_model, profiling.read_examples(examples), loaded, **common)
        print_json(asdict(estimate)) if as_json else echo(estimate)
        return
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)  # fail before the run is paid for, not after it
    with _errors_in_one_line(model):
        new = profiling.profile_model(
            name, chat_model, profiling.read_examples(examples), loaded, **common, **settings, progress=not as_json
        )
    if output is not None:
        new.save(output)
    change = compare.what_if(loaded, new)
    if registers:
        loaded.register(new)
        loaded.save(router)
    if as_json:
        print_json(
            {
                "name": name,
                "mean_error": new.mean_error,
                "metadata": dict(new.metadata),
                "shares": {each: {"before": before, "after": after} for each, (before, after) in change.shares.items()},
                "undecided": change.undecided,
                "output": None if output is None else str(output),
                "registered": registers,
            }
        )
        return
    if new.metadata["stopped_by"]:
        echo(f"Stopped by {new.metadata['stopped_by']}.")
    echo(repr(new))
    echo(change)
    if output is not None:
        echo(f"Saved: {output}")
    if registers:
        echo(f"Registered in {router}.")


@contextmanager
def _errors_in_one_line(model: str) -> Iterator[None]:
    """Turn any error of a provider's client into one of ours, which is printed as a message."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UniRouterError) or (isinstance(error, OSError) and not isinstance(error, ConnectionError)):
            raise
        lines = [f"{shown(model)} failed with {type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
        raise InvalidInputError(" ".join(" ".join(lines).split())) from error


def _price_of(model: str, price: str | None) -> Price | None:
    """Return the given price, or the list price of a provider's model; None for a Python object, which has a name."""
    from unirouter_integrations import grading

    if price is not None:
        return _price(price)
    try:
        return None if model.startswith(_OBJECT) else grading.price_of(model)
    except UniRouterError as error:
        msg = f"{error} On the command line: --price IN,OUT."
        raise InvalidInputError(msg) from error


def _model(named: str) -> Any:
    """Make the chat model that --model names."""
    if named.startswith(_URL_SCHEMES):
        url, _, model = named.partition("#")
        if not model:
            msg = f"{shown(named)} names no model. Add # and its name: http://localhost:8000/v1#qwen."
            raise InvalidInputError(msg)
        try:
            from langchain_openai import ChatOpenAI
        except ImportError as error:
            msg = "A model behind an OpenAI-compatible URL needs pip install langchain-openai."
            raise MissingDependencyError(msg) from error
        key = os.environ.get("OPENAI_API_KEY", "none")
        return ChatOpenAI(model=model, base_url=url, api_key=lambda: key, max_retries=0)
    if named.startswith(_OBJECT):
        return _object(named)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        msg = f"Making {shown(named)} needs pip install langchain and its provider's package."
        raise MissingDependencyError(msg) from error
    try:
        return init_chat_model(named, max_retries=0)  # the run retries, and counts its calls
    except Exception as error:  # any error of a provider's package, such as a missing key
        msg = f"{shown(named)} cannot be made. {type(error).__name__}: {error}"
        raise InvalidInputError(msg) from error


def _object(named: str) -> Any:
    """Import the Python object py:module:attribute. The working directory comes first.

    Nothing else that is named on the command line runs a file: openai:gpt-5 is not an openai.py that lies there.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = pkgutil.resolve_name(named.removeprefix(_OBJECT))
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"{shown(named)} should be py:module:attribute, such as py:models:llm for llm in models.py. {error}"
        raise InvalidInputError(msg) from error
    finally:
        sys.path.pop(0)
    return found


def _price(text: str) -> Price:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in _N_PRICES:
        msg = f"--price should be USD per million tokens, IN,OUT or IN,OUT,CACHED, but is {shown(text)}."
        raise InvalidInputError(msg)
    return Price(*numbers)
