"""The LLM, through the front door: `Settings.llm`, `llm=`, and what a user sees of the decision."""

import asyncio
import copy
import json
import pickle
import sys
import threading
from collections import Counter
from typing import Any

import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores
from llama_index.core import Settings, get_response_synthesizer
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage, ChatResponse, MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llamaindex_fakes import (
    Fake,
    ToyEmbedding,
    counting,
    fakes,
    terse,
    toy_index,
    watched,
    without_id,
    word_counter,
)
from pydantic import BaseModel, PrivateAttr

from unirouter_integrations import InvalidInputError, NoModelError, UniRouter, UnknownModelError
from unirouter_integrations.llamaindex import UniRouterLLM, _llm
from unirouter_integrations.llamaindex._calls import call_of_messages, call_of_template, call_of_text
from unirouter_integrations.serving._options import CallOptions

QUESTIONS = ["a sum", "a poem", "a date"]
ANSWERS = ["abacus: a sum", "poet: a poem", "oracle: a date"]
# A dozen retrieved texts, all of them about poems.
NODES = [NodeWithScore(node=TextNode(text=f"A poem of {n} lines. " * 20)) for n in range(12)]
MODES = [ResponseMode.REFINE, ResponseMode.COMPACT, ResponseMode.SIMPLE_SUMMARIZE, ResponseMode.TREE_SUMMARIZE]
MODES += [ResponseMode.ACCUMULATE, ResponseMode.COMPACT_ACCUMULATE, ResponseMode.GENERATION]
FORMS = [(mode, "plain") for mode in MODES] + [
    (mode, "streamed")  # LlamaIndex streams no accumulated answers
    for mode in MODES
    if mode not in {ResponseMode.ACCUMULATE, ResponseMode.COMPACT_ACCUMULATE}
]


class Note(BaseModel):
    """Write something down."""

    text: str


def note(text: str) -> str:
    """Write something down."""
    return text


TOOLS = [FunctionTool.from_defaults(note)]


@pytest.fixture
def llm(router: UniRouter) -> UniRouterLLM:
    return UniRouterLLM(router=router, models=fakes())


def fake(llm: UniRouterLLM, name: str) -> Fake:
    found = llm.models[name]
    assert isinstance(found, Fake)
    return found


def called(llm: UniRouterLLM) -> set[str]:
    return {name for name in llm.models if fake(llm, name).sent}


def counted(router: UniRouter) -> tuple[UniRouter, list[str]]:
    """The same router, and the texts that it has embedded."""
    embedded: list[str] = []

    def embed(texts: list[str]) -> Any:
        embedded.extend(texts)
        return toy_embed(texts)

    again = UniRouter.fit(TOY_PROMPTS, embedder=embed, n_clusters=3, estimator="mean")
    for name, wrong, cost in (("abacus", ("poem", "date"), 1), ("poet", ("sum", "date"), 2), ("oracle", (), 10)):
        again.register(again.profile(name, TOY_PROMPTS, toy_scores(*wrong), cost=cost))
    embedded.clear()
    return again, embedded


async def test_each_question_goes_to_its_model(llm: UniRouterLLM) -> None:
    """In every form of chat and completion."""
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        messages = [ChatMessage(question)]
        assert llm.chat(messages).message.content == (await llm.achat(messages)).message.content == answer
        assert [*llm.stream_chat(messages)][-1].message.content == answer
        assert [part async for part in await llm.astream_chat(messages)][-1].message.content == answer
        assert llm.complete(question).text == (await llm.acomplete(question)).text == answer
        assert [*llm.stream_complete(question)][-1].text == answer
        assert [part async for part in await llm.astream_complete(question)][-1].text == answer


def test_the_last_message_of_the_user_decides(llm: UniRouterLLM) -> None:
    """Neither the system message nor earlier turns, nor what an agent says in the user's name; else all there is."""

    def chosen(*messages: tuple[str, str]) -> str:
        given = [ChatMessage(text, role=role) for role, text in messages]
        return str(llm.chat(given).additional_kwargs["unirouter"]["model"])

    question = f"a sum of {'many ' * 12}numbers"  # too long to be a follow-up
    turns = [("system", "poem"), ("user", "a poem"), ("assistant", "a poem"), ("user", question)]
    assert chosen(*turns) == "abacus"
    assert chosen(*turns, ("assistant", "poem"), ("user", "Observation: a poem")) == "abacus"
    assert chosen(*turns, ("assistant", "poem"), ("user", "Error while parsing the output: a poem")) == "abacus"
    assert chosen(*turns, ("assistant", ""), ("user", "FAILURE: Your previous response was empty.\npoem")) == "abacus"
    assert chosen(*turns, ("assistant", "poem"), ("tool", "a poem")) == "abacus"
    assert chosen(("system", "write a poem")) == "poet"


@pytest.mark.parametrize(("mode", "form"), FORMS)
async def test_a_rag_answer_is_judged_by_its_question(router: UniRouter, mode: ResponseMode, form: str) -> None:
    """In every response mode, plain, awaited and streamed: not by a dozen texts about poems."""
    streaming = form == "streamed"
    llm = UniRouterLLM(router=router, models=terse())
    for question, name in (("a sum", "abacus"), ("a date", "oracle")):
        for model in llm.models:
            fake(llm, model).sent.clear()
        synthesizer = get_response_synthesizer(llm, response_mode=mode, streaming=streaming)
        found: Any = synthesizer.synthesize(question, NODES)
        afound: Any = await synthesizer.asynthesize(question, NODES)
        if streaming:
            texts = ["".join(found.response_gen), "".join([text async for text in afound.response_gen])]
        else:
            texts = [str(found), str(afound)]
        assert called(llm) == {name}
        assert f"{name}: yes" in texts[0]
        assert texts[0] == texts[1]
        if mode != ResponseMode.GENERATION:
            assert any("A poem of 3 lines" in str(messages) for messages in fake(llm, name).sent)


@pytest.mark.parametrize("mode", [ResponseMode.REFINE, ResponseMode.COMPACT, ResponseMode.TREE_SUMMARIZE])
async def test_a_rag_answer_in_a_form_too(router: UniRouter, mode: ResponseMode) -> None:
    """With output_cls, and through as_structured_llm, the question decides."""
    llm = UniRouterLLM(router=router, models=terse())
    for question, name in (("a sum", "abacus"), ("a date", "oracle")):
        for model in llm.models:
            fake(llm, model).sent.clear()
        get_response_synthesizer(llm, response_mode=mode, output_cls=Note).synthesize(question, NODES)
        synthesizer = get_response_synthesizer(llm.as_structured_llm(Note), response_mode=mode)
        found: Any = synthesizer.synthesize(question, NODES)
        afound: Any = await synthesizer.asynthesize(question, NODES)
        assert found.response == afound.response
        assert isinstance(found.response, Note)
        assert called(llm) == {name}


async def test_a_question_is_embedded_once_however_many_calls_it_takes(router: UniRouter) -> None:
    """A refined answer over twelve texts, and a loop of tool calls."""
    again, embedded = counted(router)
    llm = UniRouterLLM(router=again, models=terse())
    get_response_synthesizer(llm, response_mode=ResponseMode.REFINE).synthesize("a sum", NODES)
    assert (len(fake(llm, "abacus").sent), embedded) == (12, ["a sum"])
    history = [ChatMessage("a poem")]
    history.append((await llm.achat_with_tools(TOOLS, chat_history=history)).message)
    llm.chat_with_tools(TOOLS, chat_history=[*history, ChatMessage("noted", role="tool")])
    assert embedded == ["a sum", "a poem"]


async def test_the_decision_is_on_every_part_of_every_answer(llm: UniRouterLLM) -> None:
    """Beside what the model put there, as plain JSON. The message names its model, which no provider is sent."""
    decision = without_id(llm.router.route("a poem").as_dict())
    messages = [ChatMessage("a poem")]
    answers: list[Any] = [llm.chat(messages), await llm.achat(messages), *llm.stream_chat(messages)]
    answers += [part async for part in await llm.astream_chat(messages)]
    answers += [llm.complete("a poem"), await llm.acomplete("a poem"), *llm.stream_complete("a poem")]
    answers += [part async for part in await llm.astream_complete("a poem")]
    answers += [llm.chat_with_tools(TOOLS, "a poem"), *llm.stream_chat_with_tools(TOOLS, "a poem")]
    ids: Counter[str] = Counter()
    for answer in answers:
        noted = answer.additional_kwargs["unirouter"]
        assert {**answer.additional_kwargs, "unirouter": without_id(noted)} == {"unirouter": decision, "own": "poet"}
        assert len(noted["id"]) == 16
        if isinstance(answer, ChatResponse):
            assert answer.message.additional_kwargs["unirouter"] == {"model": "poet"}
        ids[noted["id"]] += 1
    assert [*ids.values()] == [1, 1, 3, 3, 1, 1, 3, 3, 1, 1]  # one for each call
    assert json.loads(json.dumps(decision)) == decision
    llm.chat([*messages, answers[0].message, ChatMessage("a poem")])
    assert [message.additional_kwargs for message in fake(llm, "poet").sent[-1]] == [{}, {}, {}]


async def test_tracing_tools_see_the_decision_before_the_call(llm: UniRouterLLM) -> None:
    """One event per call, in the router's span, without the prompt."""
    with watched() as watch:
        answer = await llm.achat([ChatMessage("a poem about SECRET")])
        llm.predict(PromptTemplate("{query_str}"), query_str="a sum")
        llm.chat_with_tools(TOOLS, "a date")
    kinds = ("UniRouteDecisionEvent", "LLMChatStartEvent", "LLMChatEndEvent")
    assert watch.names(*kinds) == [*kinds] * 3
    events = watch.of("UniRouteDecisionEvent")
    assert [event.model for event in events] == ["poet", "abacus", "oracle"]
    assert events[0].span_id.startswith("UniRouterLLM.achat")
    dumped = events[0].model_dump()
    expected = answer.additional_kwargs["unirouter"]
    assert without_id(expected) == without_id(llm.router.route("a poem about SECRET").as_dict())
    assert {key: dumped[key] for key in expected} == expected
    assert "SECRET" not in str(dumped)


async def test_tokens_are_counted_once_whoever_counts(llm: UniRouterLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `Settings.callback_manager`, exactly those of the models that were called."""
    counter = word_counter()
    monkeypatch.setattr(Settings, "_llm", llm)
    monkeypatch.setattr(Settings, "_callback_manager", counting(counter))
    assert Settings.llm is llm
    engine = toy_index(ToyEmbedding()).as_query_engine(similarity_top_k=2)
    engine.query("a sum")
    await engine.aquery("a poem")
    Settings.llm.complete("a date")
    list(llm.stream_chat([ChatMessage("a date")]))
    usages = [fake(llm, name).raws[-1]["usage"] for name in ("abacus", "poet", "oracle", "oracle")]
    assert len(counter.llm_token_counts) == 4
    assert counter.total_llm_token_count == sum(usage["total_tokens"] for usage in usages)
    other = word_counter()
    monkeypatch.setattr(Settings, "_callback_manager", counting(other))
    Settings.llm.complete("a date")
    assert (len(counter.llm_token_counts), len(other.llm_token_counts)) == (4, 1)


def test_a_model_with_its_own_handlers_keeps_them(llm: UniRouterLLM) -> None:
    """The others report to the router's."""
    own, ours = word_counter(), word_counter()
    fake(llm, "poet").callback_manager = CallbackManager([own])
    llm.callback_manager = counting(ours)
    llm.complete("a poem")
    llm.complete("a sum")
    assert (len(own.llm_token_counts), len(ours.llm_token_counts)) == (1, 1)


async def test_a_hundred_queries_at_once_do_not_mix(llm: UniRouterLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered by its own model, from its own question, streamed or not."""
    monkeypatch.setattr(Settings, "_llm", llm)
    index = toy_index(ToyEmbedding())
    plain, streamed = index.as_query_engine(), index.as_query_engine(streaming=True)
    expected = {"sum": "abacus", "poem": "poet", "date": "oracle"}

    async def ask(n: int) -> tuple[str, str]:
        kind = [*expected][n % 3]
        found: Any = await (streamed if n % 2 else plain).aquery(f"a {kind} for user <{n}>")
        text = "".join([part async for part in found.response_gen]) if n % 2 else str(found)
        assert f"<{n}>" in text
        return expected[kind], text.split(":")[0]

    answers = await asyncio.gather(*map(ask, range(100)))
    assert all(wanted == found for wanted, found in answers)


def test_threads_do_not_mix_either_while_models_come_and_go(llm: UniRouterLLM) -> None:
    """Each answer is of the model that it names, and the metadata can be read."""
    profile = llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    stop, wrong = threading.Event(), []

    def change() -> None:
        while not stop.is_set():
            llm.register("calendar", Fake(model_name="calendar"), profile)
            llm.unregister("calendar")

    def ask(question: str) -> None:
        for _ in range(150):
            answer = llm.chat([ChatMessage(question)])
            assert llm.metadata.context_window == 4000
            if not str(answer.message.content).startswith(answer.additional_kwargs["unirouter"]["model"]):
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(question,)) for question in QUESTIONS * 2]
    changing = threading.Thread(target=change)
    changing.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    changing.join()
    assert not wrong


def test_a_model_joins_and_leaves_wherever_the_llm_is_used(llm: UniRouterLLM) -> None:
    """An engine that was built before sees it; a wrong one is refused and changes nothing."""
    engine = toy_index(ToyEmbedding()).as_query_engine(llm=llm)
    assert str(engine.query("a date")).startswith("oracle")
    profile = llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    llm.register("calendar", Fake(model_name="calendar"), profile)
    assert str(engine.query("a date")).startswith("calendar")
    llm.unregister("calendar")
    assert str(engine.query("a date")).startswith("oracle")
    with pytest.raises(InvalidInputError, match="'almanac' needs its own profile"):
        llm.register("almanac", Fake(model_name="almanac"), profile)
    with pytest.raises(InvalidInputError, match="should be a LlamaIndex LLM, not str"):
        llm.register("calendar", "gpt", profile)  # type: ignore[arg-type]
    with pytest.raises(UnknownModelError):
        llm.unregister("calendar")
    assert [*llm.models] == ["abacus", "poet", "oracle"]


def test_a_loop_of_tool_calls_stays_with_its_model(llm: UniRouterLLM) -> None:
    """Even if a better one joins meanwhile; a new question goes to that one, and so does the loop if its model left."""
    history = [ChatMessage("a date")]
    history.append(llm.chat_with_tools(TOOLS, chat_history=history).message)
    history.append(ChatMessage("noted", role="tool"))
    llm.register(
        "calendar", Fake(model_name="calendar"), llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    )
    assert llm.chat_with_tools(TOOLS, chat_history=history).additional_kwargs["own"] == "oracle"
    assert llm.chat(history).additional_kwargs["own"] == "oracle"
    assert llm.chat([ChatMessage("what date")]).additional_kwargs["own"] == "calendar"
    llm.router.unregister("oracle")
    assert llm.chat(history).additional_kwargs["own"] == "calendar"


def test_loops_are_not_remembered_forever(llm: UniRouterLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many other questions a loop may go on with another model."""
    monkeypatch.setattr(_llm, "_MAX_REMEMBERED", 20)
    loops = [[ChatMessage(f"a date {n}"), ChatMessage("", role="assistant")] for n in (0, 39)]
    for n in range(40):
        llm.complete(f"a date {n}")
    llm.register(
        "calendar", Fake(model_name="calendar"), llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    )
    assert [llm.chat(loop).additional_kwargs["own"] for loop in loops] == ["calendar", "oracle"]


def test_tools_go_to_models_that_take_them(router: UniRouter) -> None:
    """With the reason for those left out; a call that none can take is a clear error."""
    models = {**fakes(abacus={"calls_functions": False}), "poet": MockLLM()}
    llm = UniRouterLLM(router=router, models=models)
    note = llm.chat_with_tools(TOOLS, "a sum").additional_kwargs["unirouter"]
    assert note["model"] == "oracle"
    without = [{"model": name, "kind": "incapable", "reason": "it takes no tools"} for name in ("abacus", "poet")]
    assert note["excluded"] == without
    assert llm.chat([ChatMessage("a sum")]).additional_kwargs["unirouter"]["model"] == "abacus"
    with watched() as watch:
        llm.chat_with_tools(TOOLS, "a sum")
    assert watch.of("UniRouteDecisionEvent")[0].excluded == without
    del llm.models["oracle"]
    with pytest.raises(NoModelError, match=r"can take this call\. abacus: it takes no tools; poet: it takes no tools"):
        llm.chat_with_tools(TOOLS, "a sum")
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(NotImplementedError):
        llm.get_tool_calls_from_response(llm.chat([ChatMessage("a sum")]))


def test_long_input_goes_to_models_with_room_for_it(router: UniRouter) -> None:
    """Counted at four characters a token; if none has room, those with the most have a try."""
    llm = UniRouterLLM(router=router, models=fakes(abacus={"window": 1000}, oracle={"terse": True}))
    note = llm.chat([ChatMessage("poem " * 1000, role="system"), ChatMessage("a sum")]).additional_kwargs["unirouter"]
    assert note["model"] == "oracle"
    reason = "its input is limited to 1,000 tokens, and this one has about 1,251"
    assert note["excluded"] == [{"model": "abacus", "kind": "incapable", "reason": reason}]
    assert llm.predict(PromptTemplate("{text} {query_str}"), text="poem " * 1000, query_str="a sum").startswith(
        "oracle"
    )
    assert llm.complete("sum " * 100_000).additional_kwargs["unirouter"]["model"] == "oracle"
    assert llm.complete("a sum").additional_kwargs["unirouter"]["model"] == "abacus"


def test_its_metadata_is_what_holds_whichever_model_is_chosen(router: UniRouter) -> None:
    """A context by choice, room for the longest answer but never all of the context, a constant name."""
    settings = {
        "abacus": {"window": 1000, "num_output": 400},
        "poet": {"num_output": 900, "calls_functions": False},
        "oracle": {"num_output": -1},
    }
    windows: tuple[tuple[Any, int, int], ...] = (("widest", 4000, 900), ("shortest", 1000, 500), (600, 600, 300))
    for choice, window, num_output in windows:
        llm = UniRouterLLM(router=router, models=fakes(**settings), context_window=choice)
        metadata = llm.metadata
        assert (metadata.context_window, metadata.num_output, metadata.model_name) == (window, num_output, "unirouter")
        assert (metadata.is_chat_model, metadata.is_function_calling_model) == (True, True)
    llm = UniRouterLLM(router=router, models=fakes(**settings), context_window="shortest")
    llm.unregister("abacus")
    assert (llm.metadata.context_window, llm.metadata.num_output) == (4000, 900)
    for wrong in ("longest", 0, 1.5):
        with pytest.raises(InvalidInputError, match="context_window"):
            UniRouterLLM(router=router, models=fakes(), context_window=wrong)


def test_one_model_that_completes_makes_no_chat_model_of_all(router: UniRouter) -> None:
    """LlamaIndex would leave the retrieved text out of what it sends to that one."""

    class Completing(Fake):
        @property
        def metadata(self) -> Any:
            return super().metadata.model_copy(update={"is_chat_model": False})

    models: dict[str, Any] = {**fakes(), "poet": Completing(model_name="poet")}
    assert not UniRouterLLM(router=router, models=models).metadata.is_chat_model


class Unreachable(Fake):
    """Asks its server what it is, and the server is down."""

    _reads: int = PrivateAttr(default=0)

    @property
    def metadata(self) -> Any:
        self._reads += 1
        raise ConnectionError


async def test_a_model_whose_metadata_cannot_be_read_is_asked_last(router: UniRouter, caplog: Any) -> None:
    """It does not take the calls of the others with it, nor is its server asked again at each of them."""
    poet: Any = Unreachable(model_name="poet")
    llm = UniRouterLLM(router=router, models={**fakes(), "poet": poet})
    assert llm.metadata.context_window == 4000
    before = poet._reads
    for answer in (llm.complete("a poem"), await llm.acomplete("a poem"), llm.complete("a poem")):
        assert answer.text == "oracle: a poem"
        kinds = [(each["model"], each["kind"]) for each in answer.additional_kwargs["unirouter"]["excluded"]]
        assert kinds == [("poet", "cooling_down")]
    assert poet._reads == before + 1
    assert [record.message for record in caplog.records] == [
        "What poet is capable of cannot be read (ConnectionError)."
    ]
    fake(llm, "oracle").error = fake(llm, "abacus").error = TimeoutError()
    with pytest.raises(ConnectionError):  # it was asked, last, and its client asked the server
        llm.complete("a poem")


async def test_what_a_model_says_of_itself_is_not_read_in_the_event_loop(router: UniRouter) -> None:
    """It may ask a server."""
    threads = set()

    class Asking(Fake):
        @property
        def metadata(self) -> Any:
            threads.add(threading.current_thread())
            return super().metadata

    models: dict[str, Any] = {**fakes(), "poet": Asking(model_name="poet")}
    llm = UniRouterLLM(router=router, models=models)
    threads.clear()
    rule = llm._serving.adecide([llm._request(call_of_text("a poem"), CallOptions())])
    await rule
    assert threads
    assert threading.current_thread() not in threads


def test_system_messages_have_the_role_that_the_model_has_them_in(router: UniRouter) -> None:
    """Chat engines ask the router's metadata for it; the given messages stay as they are."""
    llm = UniRouterLLM(router=router, models=fakes(poet={"system_role": "user"}))
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage("a poem")]
    llm.chat(messages)
    assert [message.role.value for message in fake(llm, "poet").sent[0]] == ["user", "user"]
    assert messages[0].role.value == "system"


def test_no_key_is_printed_dumped_or_pickled(llm: UniRouterLLM) -> None:
    """And no prompt either."""
    llm.complete("a poem about PRIVATE")
    shown = [repr(llm), str(llm), str(llm.to_dict()), llm.to_json(), str(llm.to_payload()), str(pickle.dumps(llm))]
    assert not [text for text in shown if "SECRET" in text or "PRIVATE" in text]
    assert "abacus" in repr(llm)


def test_a_pickle_comes_back_without_models_and_says_what_to_do(router: UniRouter) -> None:
    """Put back, they answer as before."""
    llm = UniRouterLLM(router=router, models=fakes(), cost_weight=0.3)
    again = pickle.loads(pickle.dumps(llm))  # noqa: S301
    assert again.cost_weight == 0.3
    assert again.metadata.model_name == "unirouter"
    with pytest.raises(NoModelError, match=r"put them back: llm.models.update\(...\)"):
        again.complete("a sum")
    again.models.update(llm.models)
    assert again.complete("a sum").text == llm.complete("a sum").text


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, UniRouterLLM.model_copy])
def test_a_copy_has_the_same_live_models(llm: UniRouterLLM, copied: Any) -> None:
    """Not copies of them: what joins later is seen, and no client is made twice."""
    same = copied(llm)
    assert same.models is llm.models
    llm.register(
        "calendar", Fake(model_name="calendar"), llm.router.profile("calendar", TOY_PROMPTS, toy_scores(), cost=0.5)
    )
    assert same.complete("a date").text == "calendar: a date"


def test_it_can_be_made_again_from_its_dict(llm: UniRouterLLM) -> None:
    """With the router and the models, which are not in it."""
    llm.cost_weight = 5
    again = UniRouterLLM.from_dict(llm.to_dict(), router=llm.router, models=llm.models)
    assert again.complete("a date").additional_kwargs["unirouter"]["cost_weight"] == 5
    assert again.complete("a date").text == "abacus: a date"


def test_what_is_given_is_checked(router: UniRouter) -> None:
    """At once, and the message names it."""
    for models, message in (
        ({}, "models is empty"),
        ([Fake(model_name="abacus")], "a dict from names to models, or a ModelRegistry, not list"),
        ({1: Fake(model_name="abacus")}, "named by str, not by int"),
        ({"abacus": "gpt-4"}, "'abacus' should be a LlamaIndex LLM, not str"),
        ({"nobody": Fake(model_name="nobody")}, "no profile of 'nobody'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            UniRouterLLM(router=router, models=models)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="cost_weight should be a number"):
        UniRouterLLM(router=router, models=fakes(), cost_weight=-1)
    with pytest.raises(InvalidInputError, match=r"system_prompt has no effect.*set it on its models"):
        UniRouterLLM(router=router, models=fakes(), system_prompt="Be brief.")
    with pytest.raises(InvalidInputError, match=r"no 'colldown'\. Did you mean 'cooldown'"):
        UniRouterLLM(router=router, models=fakes(), colldown=0)


def test_a_router_inside_a_router_names_the_model_that_answered(llm: UniRouterLLM) -> None:
    """Also where tools are called."""
    outer_router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=1)
    outer_router.register(outer_router.profile("team", TOY_PROMPTS, toy_scores(), cost=1))
    outer = UniRouterLLM(router=outer_router, models={"team": llm})
    answer = outer.chat_with_tools(TOOLS, "a poem")
    assert answer.additional_kwargs["unirouter"]["model"] == "poet"
    (call,) = outer.get_tool_calls_from_response(answer)
    assert call.tool_name == "note"


def test_llms_of_every_kind_take_part(router: UniRouter) -> None:
    """Those that only complete, and those that answer with other events than chats."""
    models = {"abacus": MockLLM(max_tokens=2), "poet": MockFunctionCallingLLM(), "oracle": Fake(model_name="oracle")}
    llm = UniRouterLLM(router=router, models=models)
    assert llm.chat([ChatMessage("a sum")]).message.content == "text text"
    assert llm.predict(PromptTemplate("{query_str}"), query_str="a sum") == "text text"
    assert llm.chat([ChatMessage("a poem")]).message.content == "a poem"


def test_without_llamaindex_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an ImportError."""
    for module in [name for name in sys.modules if name.startswith("unirouter_integrations.llamaindex")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "llama_index.core", None)
    with pytest.raises(ImportError, match=r"pip install 'unirouter-integrations\[llamaindex\]'"):
        import unirouter_integrations.llamaindex  # noqa: F401


def test_the_length_of_a_call_is_that_of_all_that_it_holds() -> None:
    """Templates may hold lists of texts and messages, as those of rerankers do; an image takes about 1,000 tokens."""
    template = PromptTemplate("{context_str} {query_str}")
    texts, image = ["x" * 4000] * 3, ImageBlock(url="https://example.com/a.png")
    for given in ("x" * 12000, texts, [ChatMessage(each) for each in texts]):
        call = call_of_template(MockLLM(), template, {"context_str": given, "query_str": "why?"})
        assert (call.asked, call.needs.tokens) == ("why?", 3001)
    assert call_of_messages([ChatMessage(blocks=[TextBlock(text="x" * 4000), image])]).needs.tokens == 2000
