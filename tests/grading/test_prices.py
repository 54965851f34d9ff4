"""What calls cost, and where prices come from."""

import subprocess
import sys

import pytest

from unirouter_integrations import InvalidInputError, MissingDependencyError
from unirouter_integrations.grading import Price, Usage, price_of


def test_a_price() -> None:
    """Cached tokens are read tokens at their own price, or at that of the others."""
    usage = Usage(input_tokens=1_000_000, output_tokens=100_000, cached_tokens=400_000)
    assert Price(1, 10, cached_input=0.1).cost(usage) == pytest.approx(0.6 + 0.04 + 1)
    assert Price(1, 10).cost(usage) == pytest.approx(1 + 1)


@pytest.mark.parametrize("price", [(-1, 0), (0, float("nan")), (0, 0, float("inf")), ("1", 0), (None, 0)])
def test_what_is_no_price(price: tuple[float, ...]) -> None:
    """It is a number of at least 0."""
    with pytest.raises(
        InvalidInputError, match="price, in USD per million tokens, should be a number of at least 0, but is"
    ):
        Price(*price)


@pytest.mark.parametrize(
    "name", ["gpt-5-mini", "openai:gpt-5-mini", "openai/gpt-5-mini", "azure_openai:gpt-5-mini", "gpt-5-mini-2025-08-07"]
)
def test_a_price_is_looked_up(name: str) -> None:
    """By the name alone, with its provider, and with its date; to the cent."""
    pytest.importorskip("genai_prices")
    assert price_of(name) == Price(0.25, 2.0, cached_input=0.025)


@pytest.mark.parametrize(
    ("name", "price"),
    [
        ("google_genai:gemini-2.5-pro", Price(1.25, 10.0, cached_input=0.125)),  # more expensive from 200,000 tokens on
        ("perplexity:sonar-pro", Price(3.0, 15.0)),  # and a fee per request
        ("together:meta-llama/Llama-3.3-70B-Instruct-Turbo", Price(0.88, 0.88)),
        ("bedrock_converse:anthropic.claude-3-5-sonnet-20241022-v2:0", Price(3.0, 15.0, cached_input=0.3)),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", Price(3.0, 15.0, cached_input=0.3)),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", Price(3.0, 15.0, cached_input=0.3)),
    ],
)
def test_which_price_is_taken(name: str, price: Price) -> None:
    """That of tokens, in the first tier; cached tokens have a price of their own only where they are cheaper."""
    pytest.importorskip("genai_prices")
    assert price_of(name) == price


@pytest.mark.parametrize(
    "name",
    ["", ":", "openai:", "gpt-99", "openai:gpt-99", "nobody:gpt-5-mini", "ollama:llama3:8b", "groq:claude-opus-4"],
)
def test_an_unknown_model(name: str) -> None:
    """The error names it and says how to give the price."""
    pytest.importorskip("genai_prices")
    with pytest.raises(InvalidInputError, match=r"genai-prices knows no model .*price=Price\(input, output\)"):
        price_of(name)


def test_a_model_without_a_price_per_token() -> None:
    """It is not taken for a free one."""
    pytest.importorskip("genai_prices")
    with pytest.raises(InvalidInputError, match=r"no price per token for 'whisper-1'.*Price\(0, 0\) if it is free"):
        price_of("whisper-1")


def test_without_genai_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, and what to do without it."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(MissingDependencyError, match=r"price=Price\(input, output\).*unirouter-integrations\[prices\]"):
        price_of("gpt-5-mini")


def test_a_lookup_opens_no_connection() -> None:
    """Prices are those of the installed release; importing the profiler does not import them."""
    pytest.importorskip("genai_prices")
    script = """
import sys
events = []
sys.addaudithook(lambda event, _: events.append(event) if event.startswith("socket.") else None)
from unirouter_integrations.grading import price_of
assert "genai_prices" not in sys.modules
price_of("openai:gpt-5-mini")
print([event for event in events if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("[]\n", "")
