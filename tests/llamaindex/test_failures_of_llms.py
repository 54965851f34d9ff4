"""An LLM that fails is replaced by the next best of the same decision; a failing embedder by a default LLM."""

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_router, toy_scores
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llamaindex_fakes import (
    BadRequestError,
    Clock,
    Fake,
    Service,
    ToyEmbedding,
    doubtful,
    excluded,
    fakes,
    toy_index,
    watched,
)
from openai_server import FAULTS, HANG, openai_server
from pydantic import BaseModel

from unirouter_integrations import InvalidInputError, UniRouter
from unirouter_integrations.grading import Answer, Example
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterQueryEngine, call_options
from unirouter_integrations.serving import Health

MESSAGES = [ChatMessage("a poem")]
TEMPLATE = PromptTemplate("Context: {context_str}\nQuestion: {query_str}")
FAILED = excluded("failed", "it failed with TimeoutError", "poet")


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


def failing(router: UniRouter, *names: str, error: Exception | None = None, **settings: Any) -> UniRouterLLM:
    """A router whose LLMs fail, some of them."""
    models: dict[str, Any] = fakes()
    for name in names:
        models[name].error = error or TimeoutError("too slow")
    return UniRouterLLM(router=router, models=models, **settings)


def noted(answer: Any) -> tuple[str, list[dict[str, str]]]:
    """The model that answered, and the excluded ones."""
    decision = answer.additional_kwargs["unirouter"]
    return decision["model"], decision.get("excluded", [])


async def test_the_next_best_takes_over(router: UniRouter) -> None:
    """In every form; the decision names who answered and who failed."""
    llm = failing(router, "poet", cooldown=0)
    tools = [FunctionTool.from_defaults(note)]
    answers: list[Any] = [
        llm.chat(MESSAGES),
        await llm.achat(MESSAGES),
        llm.complete("a poem"),
        await llm.acomplete("a poem"),
        *llm.stream_chat(MESSAGES),
        *[part async for part in await llm.astream_chat(MESSAGES)],
        *llm.stream_complete("a poem"),
        *[part async for part in await llm.astream_complete("a poem")],
        llm.chat_with_tools(tools, "a poem"),
        await llm.achat_with_tools(tools, "a poem"),
        *llm.stream_chat_with_tools(tools, "a poem"),
        *[part async for part in await llm.astream_chat_with_tools(tools, "a poem")],
    ]
    assert {noted(answer)[0] for answer in answers} == {"oracle"}
    assert all(noted(answer)[1] == FAILED for answer in answers)
    given: dict[str, Any] = {"context_str": "", "query_str": "a poem"}
    assert llm.predict(TEMPLATE, **given).startswith("oracle: ")
    assert (await llm.apredict(TEMPLATE, **given)).startswith("oracle: ")
    assert "".join(llm.stream(TEMPLATE, **given)).startswith("oracle: ")
    assert "".join([part async for part in await llm.astream(TEMPLATE, **given)]).startswith("oracle: ")
    assert llm.structured_predict(Note, TEMPLATE, **given).text.startswith("oracle: ")
    assert (await llm.astructured_predict(Note, TEMPLATE, **given)).text.startswith("oracle: ")
    assert "oracle: " in llm.as_structured_llm(Note).predict(TEMPLATE, **given)
    assert list(llm.stream_structured_predict(Note, TEMPLATE, **given))[-1].text.startswith("oracle: ")


def test_every_attempt_is_announced(router: UniRouter) -> None:
    """And each failed call is one in the events."""
    with watched() as watch:
        failing(router, "poet", "oracle").chat(MESSAGES)
    assert [event.model for event in watch.of("UniRouteDecisionEvent")] == ["poet", "oracle", "abacus"]


def test_other_errors_and_the_last_one_are_raised(router: UniRouter) -> None:
    """Nobody else is asked, or nobody is left."""
    for llm, error, n_asked in (
        (failing(router, "poet", error=BadRequestError()), BadRequestError, 1),
        (failing(router, *fakes()), TimeoutError, 3),
        (failing(router, "poet", fallback=False), TimeoutError, 1),
    ):
        with pytest.raises(error):
            llm.chat(MESSAGES)
        with pytest.raises(error):
            list(llm.stream_chat(MESSAGES))
        assert sum(len(model.sent) for model in llm.models.values() if isinstance(model, Fake)) == 2 * n_asked


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("choices"), TypeError(), RuntimeError("what is this?")]
)
def test_what_nobody_knows_is_survived(router: UniRouter, error: Exception) -> None:
    """Only an error that is known to be the caller's own is raised at once."""
    llm = failing(router, "poet", error=error)
    expected = ("oracle", excluded("failed", f"it failed with {type(error).__name__}", "poet"))
    assert noted(llm.chat(MESSAGES)) == expected
    assert {noted(part)[0] for part in llm.stream_chat(MESSAGES)} == {"oracle"}
    assert llm.structured_predict(Note, TEMPLATE, context_str="", query_str="a poem").text.startswith("oracle: ")


def test_a_function_says_what_is_survived(router: UniRouter) -> None:
    """It is asked about each error."""
    seen: list[Exception] = []

    def survives(error: Exception) -> bool:
        seen.append(error)
        return str(error) == "too slow"

    llm = failing(router, "poet", fallback=survives)
    assert noted(llm.chat(MESSAGES))[0] == "oracle"
    fake = llm.models["poet"]
    assert isinstance(fake, Fake)
    fake.error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        llm.chat(MESSAGES)
    assert [str(error) for error in seen] == ["too slow", "a bug"]


def test_a_model_that_is_gone_is_put_last_with_one_warning(router: UniRouter, caplog: pytest.LogCaptureFixture) -> None:
    """For a minute. Where it is the only one that may answer, it is asked, and its error is raised."""

    class GoneError(Exception):
        status_code = 401

    clock = Clock()
    llm = failing(router, "poet", error=GoneError())
    llm._health = Health(clock)
    assert noted(llm.chat(MESSAGES)) == ("oracle", excluded("failed", "it failed with GoneError", "poet"))
    for now, seconds in ((0, 60), (59, 1)):
        clock.now = now
        reason = f"it failed recently and is cooling down for {seconds} s"
        assert noted(llm.chat(MESSAGES)) == ("oracle", excluded("cooling_down", reason, "poet"))
    assert caplog.messages == ["poet is not available (GoneError); it is tried last for a while."]
    with call_options(model="poet"), pytest.raises(GoneError):
        llm.chat(MESSAGES)


def test_a_failing_model_cools_down(router: UniRouter) -> None:
    """After five failures it is asked last, and the decision says why."""
    llm = failing(router, "poet")
    llm._health = Health(Clock())
    for _ in range(5):
        assert noted(llm.chat(MESSAGES))[1] == FAILED
    (cooling,) = noted(llm.chat(MESSAGES))[1]
    assert (cooling["model"], cooling["kind"]) == ("poet", "cooling_down")
    assert cooling["reason"].startswith("it failed recently and is cooling down for ")
    poet, oracle, abacus = (llm.models[name] for name in ("poet", "oracle", "abacus"))
    assert isinstance(poet, Fake)
    assert isinstance(oracle, Fake)
    assert isinstance(abacus, Fake)
    assert len(poet.sent) == 5
    poet.error, oracle.error, abacus.error = None, TimeoutError("too slow"), TimeoutError("too slow")
    answer = llm.chat(MESSAGES)  # if all others fail, it is asked after all
    assert noted(answer) == ("poet", excluded("failed", "it failed with TimeoutError", "oracle", "abacus"))
    assert len(poet.sent) == 6


def test_one_failure_of_many_cools_nothing_down(router: UniRouter) -> None:
    """Nor does one in two: a model cools down when more than half of its recent calls failed."""
    llm = failing(router)
    llm._health = Health(Clock())
    poet = llm.models["poet"]
    assert isinstance(poet, Fake)
    for number in range(20):
        poet.error = TimeoutError("too slow") if number % 2 else None
        assert noted(llm.chat(MESSAGES))[0] == ("oracle" if number % 2 else "poet")
    assert len(poet.sent) == 20


class Lazy(Fake):
    """Makes its call when the stream is read, as OpenAI's client does."""

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return (part for opened in [super().stream_chat] for part in opened(messages, **kwargs))


def test_a_stream_that_fails_when_it_is_read_counts_as_a_failure(router: UniRouter) -> None:
    """The model cools down after five; and if the next one fails when it is opened, the third answers."""
    llm = failing(router, "oracle")
    llm._health = Health(Clock())
    llm.models["poet"] = lazy = Lazy(model_name="poet", error=TimeoutError("too slow"))
    assert noted([*llm.stream_chat(MESSAGES)][-1])[0] == "abacus"
    oracle = llm.models["oracle"]
    assert isinstance(oracle, Fake)
    oracle.error = None
    for _ in range(6):
        assert noted([*llm.stream_chat(MESSAGES)][-1])[0] == "oracle"
    assert len(lazy.sent) == 5


async def test_without_an_embedding_the_default_answers() -> None:
    """And the decision says why; without a default the error is raised."""
    service = Service()
    router = UniRouter.fit(TOY_PROMPTS, embedder=service, n_clusters=3)
    for name in fakes():
        router.register(router.profile(name, TOY_PROMPTS, toy_scores(), cost=1))
    service.error = ConnectionError("away")
    llm = UniRouterLLM(router=router, models=dict(fakes()), default="poet")
    for answer in (llm.chat(MESSAGES), await llm.achat(MESSAGES)):
        model, reasons = noted(answer)
        assert model == "poet"
        why = "the prompt could not be embedded (ConnectionError)"
        assert reasons == excluded("not_embedded", why, "abacus", "oracle")
    with pytest.raises(ConnectionError):
        UniRouterLLM(router=router, models=dict(fakes())).chat(MESSAGES)
    with pytest.raises(InvalidInputError, match="default should be one of the models"):
        UniRouterLLM(router=router, models=dict(fakes()), default="bard")


async def test_a_query_engine_has_another_model_write(router: UniRouter) -> None:
    """Sync and async; one retrieval."""
    models: dict[str, Any] = fakes()
    models["poet"].error = TimeoutError("too slow")
    index = toy_index(ToyEmbedding())
    engine = UniRouterQueryEngine(router=router, models=models, retriever=index.as_retriever())
    for response in (engine.query("a poem"), await engine.aquery("a poem")):
        assert response.metadata is not None
        assert response.metadata["unirouter"]["model"] == "oracle"
        assert response.metadata["unirouter"]["excluded"] == FAILED
    without = UniRouterQueryEngine(router=router, models=models, retriever=index.as_retriever(), fallback=False)
    with pytest.raises(TimeoutError):
        without.query("a poem")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "cut"])
@pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # of the client, whose connection broke
async def test_real_clients_survive_a_misbehaving_server(fault: str) -> None:
    """Sync and async, plain and streamed."""
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    router = toy_router("soft")

    def answer(model: str, messages: list[dict[str, Any]]) -> str:
        return f"{model} says {messages[-1]['content']}"

    with openai_server(answer, lambda model: fault if model == "poet" else None) as url:
        models = {
            name: openai_like.OpenAILike(
                model=name,
                api_base=url,
                api_key="test",
                is_chat_model=True,
                max_retries=0,
                timeout=HANG / 2 if name == "poet" else 60,  # the others may be slow on a busy machine
            )
            for name in router.models
        }
        llm = UniRouterLLM(router=router, models=models, cooldown=0)
        answers = [llm.chat(MESSAGES).message.content, (await llm.achat(MESSAGES)).message.content]
        answers.append([*llm.stream_chat(MESSAGES)][-1].message.content)
        answers.append([part async for part in await llm.astream_chat(MESSAGES)][-1].message.content)
    assert answers == ["oracle says a poem"] * 4


def checking(router: UniRouter, escalate: Any, **settings: Any) -> UniRouterLLM:
    """The cheapest is chosen; the others are better and more expensive. They answer with their names."""
    models: dict[str, Any] = fakes()
    for name, model in models.items():
        model.reply = lambda _, name=name: name
    return UniRouterLLM(router=doubtful(router), models=models, escalate=escalate, **settings)


REJECTED = "rejected", "its answer did not pass"


async def test_an_answer_that_does_not_pass_goes_on(router: UniRouter) -> None:
    """To the next better model, again and again, in every form; the best one's is not checked."""
    checked: list[str] = []

    def check(answer: Answer, example: Example) -> bool:
        checked.append(f"{example.prompt}: {answer.text}")
        return answer.text.endswith("poet")

    llm = checking(router, check)
    expected = ("poet", excluded(*REJECTED, "abacus"))
    assert noted(llm.chat(MESSAGES)) == expected
    assert checked == ["a poem: abacus", "a poem: poet"]
    assert noted(await llm.achat(MESSAGES)) == expected
    assert noted(llm.complete("a poem")) == expected
    assert noted(await llm.acomplete("a poem")) == expected
    given: dict[str, Any] = {"context_str": "long", "query_str": "a poem"}
    checked.clear()
    assert llm.predict(TEMPLATE, **given) == "poet"
    assert await llm.apredict(TEMPLATE, **given) == "poet"
    assert checked[0] == "a poem: abacus"  # by the question, not by what was retrieved
    never = checking(router, lambda answer, example: False)
    assert noted(never.chat(MESSAGES)) == ("oracle", excluded(*REJECTED, "abacus", "poet"))
    assert str(toy_index(ToyEmbedding()).as_query_engine(llm=never).query("a poem")) == "oracle"


async def test_what_has_no_text_or_has_begun_is_not_checked(router: UniRouter) -> None:
    """Tool calls, forms and streams."""
    llm = checking(router, lambda answer, example: False)
    assert noted(llm.chat_with_tools([FunctionTool.from_defaults(note)], "a poem"))[0] == "abacus"
    given: dict[str, Any] = {"context_str": "", "query_str": "a poem"}
    assert isinstance(llm.structured_predict(Note, TEMPLATE, **given), Note)
    assert {noted(part)[0] for part in llm.stream_chat(MESSAGES)} == {"abacus"}
    with pytest.raises(InvalidInputError, match=r"'contains' needs a reference"):
        checking(router, "contains")


async def test_a_paid_answer_is_not_lost(router: UniRouter) -> None:
    """If the better models fail, the one there is stands."""
    llm = checking(router, lambda answer, example: False)
    for name in ("poet", "oracle"):
        llm.models[name] = Fake(model_name=name, error=ValueError("a bug"))
    assert noted(llm.chat(MESSAGES))[0] == "abacus"
    assert noted(await llm.achat(MESSAGES))[0] == "abacus"


@pytest.mark.parametrize(("probability", "model"), [(0.9, "abacus"), (0.3, "poet")])
def test_token_probabilities_are_read_where_there_are_any(router: UniRouter, probability: float, model: str) -> None:
    """As OpenAI reports them."""
    llm = checking(router, "probability")
    choice = {"logprobs": {"content": [{"logprob": math.log(probability)}]}}
    llm.models["abacus"] = Fake(model_name="abacus", report={"choices": [choice]})
    assert noted(llm.chat(MESSAGES))[0] == model


@pytest.mark.parametrize(
    "choice", [{"finish_reason": "content_filter"}, {"message": {"refusal": "I must not."}}, {"finish_reason": "stop"}]
)
async def test_refusals_are_survived_if_asked(router: UniRouter, choice: dict[str, Any]) -> None:
    """As providers report them; not otherwise."""
    refused = choice != {"finish_reason": "stop"}
    for fallback, model in (("refusals", "poet" if refused else "abacus"), (True, "abacus")):
        llm = checking(router, None, fallback=fallback)
        llm.models["abacus"] = Fake(model_name="abacus", report={"choices": [choice]})
        assert noted(llm.chat(MESSAGES)) == (
            model,
            excluded("refused", "it refused", "abacus") if model == "poet" else [],
        )
        assert noted(await llm.achat(MESSAGES))[0] == model


async def test_refusals_that_are_errors_are_survived_if_asked(router: UniRouter) -> None:
    """As Azure's filter and Google's client raise them; they are raised as they come otherwise."""
    for message in ("Error code: 400 - {'code': 'content_filter'}", "Response was terminated early: SAFETY"):
        for fallback in ("refusals", True):
            llm = failing(router, "poet", error=RuntimeError(message), fallback=fallback)
            if fallback is True:
                with pytest.raises(RuntimeError):
                    llm.complete("a poem")
            else:
                reason = "it failed with RuntimeError"
                assert noted(llm.complete("a poem")) == ("oracle", excluded("refused", reason, "poet"))
                assert llm.predict(TEMPLATE, context_str="", query_str="a poem").startswith("oracle: ")


async def test_a_loop_goes_on_with_the_model_whose_answer_stands(router: UniRouter) -> None:
    """Not with the better ones, which have failed."""
    llm = checking(router, lambda answer, example: False)
    for name in ("poet", "oracle"):
        llm.models[name] = Fake(model_name=name, error=TimeoutError())
    first = llm.chat(MESSAGES)
    assert noted(first)[0] == "abacus"
    loop = [*MESSAGES, first.message, ChatMessage("Observation: 3")]
    assert noted(llm.chat(loop))[0] == "abacus"
    assert noted(await llm.achat(loop))[0] == "abacus"


async def test_filled_in_forms_are_not_checked(router: UniRouter) -> None:
    """In whichever way they are asked for."""
    checked: list[str] = []
    llm = checking(router, lambda answer, example: checked.append(answer.text))
    given: dict[str, Any] = {"context_str": "", "query_str": "a poem"}
    llm.as_structured_llm(Note).predict(TEMPLATE, **given)
    await llm.as_structured_llm(Note).apredict(TEMPLATE, **given)
    llm.as_structured_llm(Note).chat(MESSAGES)
    assert checked == []


def test_a_pickle_has_no_check(router: UniRouter) -> None:
    """Which may be a function or hold a key; it is not printed either."""
    llm = checking(router, lambda answer, example: False)
    assert pickle.loads(pickle.dumps(llm)).escalate is None  # noqa: S301
    assert "escalate" not in repr(llm)
    assert "escalate" not in llm.to_dict()
    assert copy.deepcopy(llm).escalate is llm.escalate


def test_where_all_cool_down_the_one_that_answers_is_not_among_the_excluded(router: UniRouter) -> None:
    """Then health is ignored, by the query engine as by the LLM."""
    models: dict[str, Any] = fakes()
    retriever = toy_index(ToyEmbedding()).as_retriever()
    engine = UniRouterQueryEngine(router=router, models=models, retriever=retriever)
    engine._health = Health(Clock())
    for model in models.values():
        model.error = TimeoutError("too slow")
    for _ in range(5):
        with pytest.raises(TimeoutError):
            engine.query("a poem")
    healthy = [f"healthy {n}" for n in range(4)]
    assert engine._health.cooling_down([*models, *healthy]).keys() == models.keys()
    assert engine._health.cooling_down(models) == {}
    for model in models.values():
        model.error = None
    decision = (engine.query("a poem").metadata or {})["unirouter"]
    assert decision["model"] == "poet"
    assert "excluded" not in decision
