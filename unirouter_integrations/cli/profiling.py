"""`unirouter profile`: from a chat model to a profile."""

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

from unirouter_integrations.cli.options import (
    embedder_option,
    existing_file,
    existing_folder,
    json_option,
    print_json,
)
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError, UniRouterError
from unirouter_integrations.profiling import Price

_PRICES = (2, 3)
_URLS = ("http://", "https://")


@click.command(short_help="Run a model over examples, grade and price it.")
@click.option(
    "--model",
    required=True,
    help="As init_chat_model names it (openai:gpt-5-mini), a Python object (module:attribute), or an OpenAI-compatible "
    "URL with the model behind # (http://localhost:8000/v1#qwen).",
)
@click.option("--name", help="The name to register it under; by default what follows the last : or # of --model.")
@click.option("--router", required=True, type=existing_folder, help="The saved router that the profile is for.")
@click.option(
    "--examples", required=True, type=existing_file, help="A .jsonl, .csv or .parquet file: prompt, reference."
)
@click.option("--scorer", default="exact", show_default=True, help="A named scorer, or module:attribute.")
@click.option("--price", help="USD per million tokens IN,OUT or IN,OUT,CACHED; by default it is looked up.")
@click.option("--journal", type=click.Path(dir_okay=False, path_type=Path), help="Keeps every answer; resumes from it.")
@click.option("-n", "n", type=click.IntRange(1), help="Run only so many examples, those that tell most.")
@click.option("--max-cost", type=click.FloatRange(0), help="Stop before more USD than this are spent.")
@click.option("--max-concurrency", default=8, show_default=True, type=click.IntRange(1), help="Calls at once.")
@click.option("--requests-per-minute", type=click.FloatRange(0, min_open=True), help="Calls per minute.")
@click.option("--timeout", default=300.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Seconds.")
@click.option(
    "--on-failure",
    type=click.Choice(["raise", "skip", "wrong"]),
    default="raise",
    show_default=True,
    help="A call failed.",
)
@click.option(
    "--stop-when", type=click.FloatRange(0, 1), help="Stop if the routing of at most this share is undecided."
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Save the profile here, a folder.")
@click.option("--register", "registers", is_flag=True, help="Register the profile in the saved router.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Only say what it would take; call nothing.")
@embedder_option
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
    """Ask a model the examples, grade and price its answers, and print what it would change.

    Nothing is registered unless --register is given; --output keeps the profile for `unirouter register`.
    """
    from unirouter_integrations import UniRouter, profiling

    loaded = UniRouter.load(router, embedder=embedder)
    is_url = model.startswith(_URLS)
    name = name or (model.rpartition("#")[2] if is_url else model.partition(":")[2] or model)
    if is_url and price is None:
        msg = "A model behind a URL needs --price IN,OUT in USD per million tokens, or 0,0 if it is free."
        raise InvalidInputError(msg)
    chat_model = _model(model)
    common: dict[str, Any] = {
        "scorer": _object(scorer) if ":" in scorer else scorer,
        "price": _price_of(model, price),
        "journal": journal,
        "n": n,
    }
    if only_estimate:
        estimate = profiling.estimate(name, chat_model, profiling.read_examples(examples), loaded, **common)
        print_json(asdict(estimate)) if as_json else click.echo(str(estimate))
        return
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)  # now: after the run it would be too late to find out that it cannot
    with _said_in_one_line(model):
        found = profiling.profile_model(
            name, chat_model, profiling.read_examples(examples), loaded, **common, **settings, progress=not as_json
        )
    if output is not None:
        found.save(output)
    change = profiling.what_if(loaded, found)
    if registers:
        loaded.register(found)
        loaded.save(router)
    if as_json:
        print_json(
            {
                "name": name,
                "mean_error": found.mean_error,
                "metadata": dict(found.metadata),
                "shares": {each: {"before": before, "after": after} for each, (before, after) in change.shares.items()},
                "undecided": change.undecided,
                "output": None if output is None else str(output),
                "registered": registers,
            }
        )
        return
    if found.metadata["stopped_by"]:
        click.echo(f"Stopped by {found.metadata['stopped_by']}, after {found.metadata['answers']} answers.")
    click.echo(repr(found))
    click.echo(str(change))
    if output is not None:
        click.echo(f"Saved: {output}")
    if registers:
        click.echo(f"Registered in {router}.")


@contextmanager
def _said_in_one_line(model: str) -> Iterator[None]:
    """Errors of a provider's client, whatever they are, as ours."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UniRouterError) or (isinstance(error, OSError) and not isinstance(error, ConnectionError)):
            raise
        said = " ".join([f"{model} failed with {type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        raise InvalidInputError(" ".join(said.split())) from error


def _price_of(model: str, price: str | None) -> Price | None:
    """The price that was given, or that of a provider's model; None to look it up by the name that an object has."""
    from unirouter_integrations import profiling

    if price is not None:
        return _price(price)
    try:
        return None if _is_object(model) else profiling.price_of(model)
    except UniRouterError as error:
        msg = f"{error} On the command line: --price IN,OUT."
        raise InvalidInputError(msg) from error


def _model(named: str) -> Any:
    """A chat model from the command line."""
    if named.startswith(_URLS):
        url, _, model = named.partition("#")
        if not model:
            msg = f"{named!r} names no model; put it behind #: http://localhost:8000/v1#qwen."
            raise InvalidInputError(msg)
        try:
            from langchain_openai import ChatOpenAI
        except ImportError as error:
            msg = "A model behind an OpenAI-compatible URL needs pip install langchain-openai."
            raise MissingDependencyError(msg) from error
        key = os.environ.get("OPENAI_API_KEY", "none")
        return ChatOpenAI(model=model, base_url=url, api_key=lambda: key, max_retries=0)
    if _is_object(named):
        return _object(named)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        msg = f"Making {named!r} needs pip install langchain and its provider's package."
        raise MissingDependencyError(msg) from error
    try:
        return init_chat_model(named, max_retries=0)  # the run retries, and counts, by itself
    except Exception as error:  # whatever a provider's package raises, such as that there is no key
        msg = f"{named!r} cannot be made. {type(error).__name__}: {error}"
        raise InvalidInputError(msg) from error


def _is_object(named: str) -> bool:
    """Whether a model is named as module:attribute rather than as provider:model."""
    module = named.partition(":")[0]
    return ":" in named and ("." in module or Path(f"{module}.py").exists() or Path(module, "__init__.py").exists())


def _object(named: str) -> Any:
    """A Python object that the user names as module:attribute, looked for in the working directory first."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = pkgutil.resolve_name(named)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"{named!r} should be module:attribute, such as models:llm for llm in models.py. {error}"
        raise InvalidInputError(msg) from error
    finally:
        sys.path.pop(0)
    return found


def _price(text: str) -> Price:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in _PRICES:
        msg = f"--price should be USD per million tokens, IN,OUT or IN,OUT,CACHED, but is {text!r}."
        raise InvalidInputError(msg)
    return Price(*numbers)
