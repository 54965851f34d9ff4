"""After a run with marked secrets nothing that this package writes, shows, raises or reports holds one of them."""

import asyncio
import copy
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.embeddings import Embeddings
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage
from openai_server import openai_server

from unirouter_integrations import InvalidInputError, StorageError, UniRouter, UniRouterError, as_embedder
from unirouter_integrations.grading import Example, Price
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.profiling import profile_model
from unirouter_integrations.serving import ModelRegistry

KEY, PASSWORD, PROMPT, REFERENCE, ANSWER = SECRETS = (
    "sk-marked7key",
    "marked7password",
    "marked7prompt",
    "marked7reference",
    "marked7answer",
)
KINDS = ("add up the numbers", "write a poem on spring")
PROMPTS = [f"{kind} number {n % 5}" for n in range(15) for kind in KINDS] + [f"write a poem on {PROMPT}"]
SCORES = [float("poem" not in prompt) for prompt in PROMPTS]
QUESTION = f"add up the numbers, {PROMPT}"
CLIENTS = ("openai", "httpx", "httpcore")  # what a provider's client logs is the client's


class Everything(BaseCallbackHandler):
    """What a tracer is told of a run beside its input and its output."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chat_model_start(self, *_: Any, tags: Any = None, metadata: Any = None, **named: Any) -> None:
        self.seen.append(repr((tags, metadata, named.get("name"))))

    def on_chain_start(self, *_: Any, tags: Any = None, metadata: Any = None, **named: Any) -> None:
        self.seen.append(repr((tags, metadata, named.get("name"))))


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """All records of all loggers at all levels, with their tracebacks, but for those of the providers' clients."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.name.startswith(CLIENTS):
                lines.append(f"{self.format(record)} {vars(record)}")

    handler = Keep(logging.NOTSET)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    before = [(logger, logger.level, logger.disabled, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(1)
        logger.disabled, logger.propagate = False, True
    logging.root.addHandler(handler)
    try:
        yield lines
    finally:
        logging.root.removeHandler(handler)
        for logger, level, disabled, propagate in before:
            logger.setLevel(level)
            logger.disabled, logger.propagate = disabled, propagate


def clean(*shown: object) -> None:
    """None of the secrets is in any of these."""
    for one in shown:
        text = one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
        for secret in SECRETS:
            assert secret not in text, f"{secret} is in {text[:2000]}"


def look_up(text: str) -> str:
    """Look something up."""
    return text


def error_of(call: Callable[[], object]) -> Exception:
    """What a call raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError


def shown(error: BaseException) -> tuple[str, ...]:
    """An error, its representation, and its traceback with those of its causes."""
    return str(error), repr(error), "".join(traceback.format_exception(error))


@pytest.fixture(scope="module")
def router() -> UniRouter:
    """Fitted on prompts of which one holds a secret, with an expert in sums and one in poems."""
    router = UniRouter.fit(PROMPTS, n_clusters=2, scores={"mini": SCORES})
    router.register(router.profile("mini", PROMPTS, SCORES, cost=1))
    router.register(router.profile("large", PROMPTS, [1 - score for score in SCORES], cost=2))
    return router


def clients(url: str, names: tuple[str, ...] = ("mini", "large")) -> dict[str, Any]:
    """Real clients with a key, and with a password in the address."""
    openai = pytest.importorskip("langchain_openai")
    address = url.replace("http://", f"http://user:{PASSWORD}@")
    return {name: openai.ChatOpenAI(model=name, base_url=address, api_key=KEY, max_retries=0) for name in names}


@pytest.mark.parametrize("failing", [(), ("mini",), ("mini", "large")])
def test_a_run_leaves_no_secret(router: UniRouter, failing: tuple[str, ...], tmp_path: Path) -> None:
    """Logs, representations, errors, decisions, trace metadata and saved routers of calls that work and that fail."""
    router = copy.deepcopy(router)
    tracer: Any = Everything()
    observed: list[object] = []
    router.subscribe(lambda *event: observed.append(event))
    with (
        openai_server(lambda *_: ANSWER, lambda model: "500" if model in failing else None) as url,
        everything_logged() as logged,
    ):
        llm = ChatUniRouter(router=router, models=ModelRegistry(clients(url)), callbacks=[tracer], cooldown=0)
        chain = llm.bind_tools([look_up]) | (lambda message: message)
        answers: list[Any] = []
        errors: list[BaseException] = []
        for call in (
            lambda: answers.append(llm.invoke(QUESTION)),
            lambda: answers.extend(llm.stream(QUESTION)),
            lambda: answers.extend(llm.batch([QUESTION, [HumanMessage(QUESTION), AIMessage(ANSWER)]])),
            lambda: answers.append(asyncio.run(llm.ainvoke(QUESTION, {"callbacks": [tracer]}))),
            lambda: chain.invoke(QUESTION),
        ):
            try:
                call()
            except Exception as error:  # noqa: BLE001
                errors.append(error)
        decided = llm.decide().invoke(QUESTION)
    assert bool(errors) == (len(failing) == 2)
    assert bool(answers) == (len(failing) < 2)
    assert any(line.startswith("unirouter_integrations ") for line in logged)
    assert tracer.seen
    for each in errors:
        clean(*shown(each))
    clean(*(answer.response_metadata for answer in answers), *logged, *tracer.seen)
    clean(repr(observed), *observed, router.stats(), repr(router.stats()))
    for one in (
        llm,
        llm.models,
        llm.decide(),
        llm.bind_tools([look_up]),
        chain,
        router,
        router.clusters,
        router.prior,
    ):
        clean(repr(one), str(one))
    clean(dumps(llm), dumps(chain), decided, repr(decided), decided.as_dict(), decided.ranking, llm._identifying_params)
    clean(router.clusters.describe(), router.profiles, llm.get_name())
    router.save(tmp_path)
    clean(*(file.read_bytes() for file in tmp_path.iterdir()), repr(UniRouter.load(tmp_path)))


def test_what_is_refused_is_not_shown(router: UniRouter) -> None:
    """Arguments in the wrong place: a client with its key and address, prompts, answers."""
    models = clients("http://localhost:1/v1")
    llm = ChatUniRouter(router=copy.deepcopy(router), models=models)
    client: Any = models["mini"]
    prompts, texts = [PROMPT] * 2, [ANSWER] * 2
    anything: Any = client
    for call in (
        lambda: router.route(QUESTION, among=[anything]),
        lambda: ChatUniRouter(router=anything, models=models),
        lambda: ChatUniRouter(router=router, models=anything),
        lambda: ChatUniRouter(router=router, models={"mini": [client]}),
        lambda: ChatUniRouter(router=router, models=models, cost_weight=anything),
        lambda: ChatUniRouter(router=router, models=models, sticky=PROMPT),  # type: ignore[arg-type]
        lambda: UniRouter.fit(PROMPTS, embedder=anything),
        lambda: UniRouter.fit(PROMPT),
        lambda: UniRouter.fit([PROMPT, 3]),
        lambda: UniRouter.fit(prompts, n_clusters=2),
        lambda: router.profile("new", prompts, texts, cost=1),  # type: ignore[arg-type]
        lambda: router.profile("new", prompts, [0, 0], cost=texts),  # type: ignore[arg-type]
        lambda: router.route(prompts),  # type: ignore[arg-type]
        lambda: router.route_many(PROMPT),
        lambda: router.route(vector=prompts),
        lambda: router.calibrate([], budget=1),
        lambda: router.register(anything),
        lambda: as_embedder({PROMPT: KEY}),  # type: ignore[arg-type]
        lambda: llm.invoke(3),  # type: ignore[arg-type]
    ):
        clean(*shown(error_of(call)))


def test_a_client_in_the_wrong_place_is_not_shown(router: UniRouter) -> None:
    """Its address may hold a password, and its repr shows it."""
    models = clients("http://localhost:1/v1")
    llm = ChatUniRouter(router=copy.deepcopy(router), models=models)
    client: Any = models["mini"]
    clean(*shown(error_of(lambda: llm.register("mini", client, client))))
    clean(*shown(error_of(lambda: llm.register(client, client, router.profiles["mini"]))))


class Elsewhere(Embeddings):
    """An embedding service that is told by its address."""

    def __init__(self, model: str) -> None:
        self.model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[len(text) % 5 + 1.0, "poem" in text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.mark.parametrize("part", ["user:{}@host/v1", "host/v1?key={}"])
def test_the_address_of_an_embedding_service_is_not_saved(part: str, tmp_path: Path) -> None:
    """Nor shown: it may hold a password. That two services are not the same is found by their vectors."""
    service = Elsewhere(f"https://{part.format(PASSWORD)}")
    router = UniRouter.fit(PROMPTS, embedder=service, n_clusters=2)
    router.save(tmp_path)
    clean(*(file.read_bytes() for file in tmp_path.iterdir()), repr(router), repr(router.clusters.embedder))
    clean(*shown(error_of(lambda: UniRouter.load(tmp_path))))
    clean(repr(UniRouter.load(tmp_path, embedder=service)))


@pytest.mark.parametrize(
    "url", ["memory://user:{}@host/router", "nowhere://user:{}@host/router", "memory://router?key={}"]
)
def test_the_address_of_a_saved_router_is_not_shown(router: UniRouter, url: str) -> None:
    """Of a folder that is elsewhere errors show no user, password or query, nor do their causes."""
    pytest.importorskip("fsspec")
    for call in (lambda: UniRouter.load(url.format(PASSWORD)), lambda: router.save(url.format(PASSWORD))):
        error = error_of(call)
        assert isinstance(error, StorageError)
        clean(*shown(error))
        assert "://" in str(error)


@pytest.mark.parametrize("store_answers", [True, False])
def test_a_journal_holds_answers_only_if_it_shall(router: UniRouter, store_answers: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """And never a prompt, a reference or a key; nor does the profile, or what is logged meanwhile."""
    journal = tmp_path / "profiles.db"
    examples = [Example(prompt=f"{QUESTION} {n}", reference=REFERENCE) for n in range(3)]
    with openai_server(lambda *_: ANSWER) as url, everything_logged() as logged:
        (client,) = clients(url, ("new",)).values()
        profile = profile_model(
            "new",
            client,
            examples,
            router,
            scorer="contains",
            price=Price(1, 5),
            journal=journal,
            store_answers=store_answers,
            progress=False,
        )
    written = b"".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))
    assert written.startswith(b"SQLite format 3")
    assert (ANSWER.encode() in written) == store_answers
    clean(written.replace(ANSWER.encode(), b""), repr(profile), profile.metadata, *logged)


def test_errors_of_profiling_hold_no_secret(router: UniRouter, tmp_path: Path) -> None:
    """Whether the model fails, or the scorer, or an example is none."""
    with openai_server(lambda *_: ANSWER, lambda _: "500") as url, everything_logged() as logged:
        (client,) = clients(url, ("new",)).values()

        def run(examples: Any, **named: Any) -> Callable[[], object]:
            options = {"scorer": "exact", "price": Price(1, 5), "max_retries": 0, "progress": False, **named}
            return lambda: profile_model("new", client, examples, router, **options)

        good = [Example(prompt=QUESTION, reference=REFERENCE)]
        for call in (
            run(good),
            run(good, on_failure="skip"),
            run([{"question": PROMPT}]),
            run([PROMPT]),
            run(good, journal=tmp_path),
        ):
            error = error_of(call)
            if isinstance(error, UniRouterError) and not isinstance(error, InvalidInputError):
                assert str(tmp_path) in str(error)
            clean(*shown(error))
    clean(*logged)
