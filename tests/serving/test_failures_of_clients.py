"""What errors of providers mean, as their real clients raise them after answers of a server on loopback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from provider_clients import ANYWHERE, CLIENTS, PROVIDERS, STREAMS, Call, Case, Server, answering_server, is_installed

from unirouter_integrations.serving._failures import classify, retry_after

pytestmark = pytest.mark.filterwarnings("ignore")  # of clients that CI does not have

GARBAGE = [
    Case("a page instead of an answer", 200, "", "garbled", b"<html>proxy</html>"),
    Case("bytes that are no UTF-8", 200, "", "garbled", b'{"choices": "\xff\xfe"}'),
    Case("half of an answer", 200, "", "garbled", b'{"choices": ['),
]
AWAY = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with answering_server() as serving:
        yield serving


def raised_by(call: Call, server: Server, case: Case, *, streamed: bool = False) -> Exception | None:
    """What a real client raises after an answer."""
    server[1].answer = case
    try:
        call(streamed)
    except Exception as error:  # noqa: BLE001  # whatever it is
        return error
    return None


@pytest.fixture(params=[name for name in CLIENTS if is_installed(name)])
def client(request: pytest.FixtureRequest) -> str:
    """Each client that is installed."""
    name: str = request.param
    return name


def tables() -> str:
    """The tables of docs/failures.md."""
    lines = []
    for provider, cases in PROVIDERS.items():
        lines += [f"### {provider}", "", "| error | status | codes | kind |", "| --- | --- | --- | --- |"]
        for case in [*cases, *STREAMS.get(provider, [])]:
            codes = " ".join(f"`{code}`" for code in case.codes.split())
            status = "200, in a stream" if case.status == 200 else case.status
            lines.append(f"| {case.what} | {status} | {codes} | {case.failure} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines)


def test_the_document_shows_what_is_tested() -> None:
    """If it does not, put `tables()` there."""
    text = (Path(__file__).parents[2] / "docs" / "failures.md").read_text(encoding="utf-8")
    assert text.partition("<!-- providers -->\n")[2].partition("<!-- /providers -->")[0].strip() == tables().strip()


def test_the_clients_of_all_providers() -> None:
    """All of them, if possible: a change of one may be missed where it is not installed."""
    missing = [name for name in CLIENTS if not is_installed(name)]
    if missing:
        pytest.skip(f"not installed, so not tried: {', '.join(missing)}")


def test_errors_of_real_clients(client: str, server: Server) -> None:
    """They mean the same by each client of a provider, raw or of a framework; also if the status of a stream is 200."""
    of, make = CLIENTS[client]
    call = make(server[0])
    cases = [(case, False) for name in of for case in [*PROVIDERS[name], *ANYWHERE]]
    cases += [(case, True) for name in of for case in STREAMS.get(name, [])]
    raised = [(case, raised_by(call, server, case, streamed=streamed)) for case, streamed in cases]
    wrong = [(case.what, error) for case, error in raised if error is None or classify(error) != case.failure]
    assert wrong == []


def test_other_faults_of_real_clients(client: str, server: Server) -> None:
    """Garbage with a status of 200, a lost connection, and how long to wait, in whichever error of the chain it is."""
    _, make = CLIENTS[client]
    call = make(server[0])
    errors = [error for case in GARBAGE if (error := raised_by(call, server, case)) is not None]  # else it is an answer
    assert [error for error in errors if classify(error) not in {"garbled", "other", "transient"}] == []

    def made_and_asked(streamed: bool) -> Any:  # noqa: FBT001  # some ask when they are made
        return make(AWAY)(streamed)

    away = raised_by(made_and_asked, server, GARBAGE[0])
    assert away is not None
    assert classify(away) == "transient", repr(away)
    limited = raised_by(call, server, Case("limit", 429, "", "transient", {"error": {"message": "Wait"}}))
    assert limited is not None
    keeps_headers = "ollama" not in client
    assert retry_after(limited) == (7 if keeps_headers else None), repr(limited)
