"""Tools, structured output, and which model can take a call: the router does for any model what the model does."""

import sys
from typing import Any, cast, get_type_hints

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs
from pydantic import BaseModel

from unirouter_integrations import NoModelError, UniRouter, UnknownModelError
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.testing import ChatFake


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


class Person(BaseModel):
    """A person."""

    name: str


def fakes(**profiles: dict[str, Any]) -> dict[str, Any]:
    """One for each of the toy router's models, with these profiles."""
    return {
        name: ChatFake(model=name, profile=cast("Any", profiles.get(name))) for name in ("abacus", "poet", "oracle")
    }


@pytest.fixture
def llm(router: UniRouter) -> ChatUniRouter:
    return ChatUniRouter(router=router, models=fakes())


async def test_tools_are_bound_to_whichever_model_is_chosen(llm: ChatUniRouter) -> None:
    """And only to that one: sync, async, streamed and in batches; the loop ends on the model it began on."""
    bound = llm.bind_tools([multiply])
    assert isinstance(bound, RunnableBinding)
    question = HumanMessage("sum number 6 7")
    streamed = None
    for chunk in bound.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    answers = [bound.invoke([question]), await bound.ainvoke([question]), streamed, bound.batch([[question]])[0]]
    for answer in answers:
        assert isinstance(answer, AIMessage)
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("multiply", {"a": 6, "b": 7})]
        assert answer.response_metadata["unirouter"]["model"] == "abacus"
    call = answers[0]
    assert isinstance(call, AIMessage)
    done = bound.invoke([question, call, ToolMessage("42", tool_call_id=str(call.tool_calls[0]["id"]))])
    assert done.response_metadata["unirouter"]["model"] == "abacus"
    assert not done.tool_calls
    assert llm.models["poet"].n_calls == 0


async def test_structured_output_is_the_models_own(llm: ChatUniRouter) -> None:
    """Parsed, raw, streamed and awaited; in a chain."""
    structured = llm.with_structured_output(Person)
    chain = ChatPromptTemplate.from_template("poem number {n}") | structured
    assert chain.invoke({"n": "i"}) == await chain.ainvoke({"n": "i"}) == Person(name="poem number i")
    assert [*chain.stream({"n": "i"})][-1] == Person(name="poem number i")
    assert chain.batch([{"n": "i"}, {"n": "ii"}])[1] == Person(name="poem number ii")
    raw = llm.with_structured_output(Person, include_raw=True).invoke("poem number i")
    assert isinstance(raw, dict)
    assert raw["raw"].response_metadata["model_name"] == "poet"


def test_what_is_bound_is_bound_once_and_anew_after_a_replacement(llm: ChatUniRouter) -> None:
    """However often it is called; a model that was replaced is bound again."""
    bound = llm.bind_tools([multiply])
    made = []

    class Counting(ChatFake):
        def bind_tools(self, *arguments: Any, **keywords: Any) -> Any:
            made.append(self.model)
            return super().bind_tools(*arguments, **keywords)

    for name in ("first", "second"):
        llm.models["abacus"] = Counting(model=name)
        for _ in range(3):
            assert bound.invoke("sum number 1 2").response_metadata["model_name"] == name
    assert made == ["first", "second"]


def test_langchain_sees_through_the_declarative_methods(llm: ChatUniRouter) -> None:
    """Their return annotations can be read, so that fallbacks survive `bind_tools`."""
    for method in (ChatUniRouter.bind_tools, ChatUniRouter.with_structured_output):
        assert "Runnable" in str(get_type_hints(method)["return"])
    broken = ChatUniRouter(router=llm.router, models={name: ChatFake(error=ValueError()) for name in llm.models})
    spare = ChatFake(model="spare")
    answer = broken.with_fallbacks([spare]).bind_tools([multiply]).invoke("sum number 2 3")
    assert answer.tool_calls[0]["name"] == "multiply"
    assert answer.response_metadata["model_name"] == "spare"
    assert llm.with_retry().invoke("sum number i").text == "abacus: sum number i"
    assert llm.bind(stop=["number"]).invoke("sum number i").text == "abacus: sum "
    assert llm.with_config(tags=["x"]).invoke("sum number i").text == "abacus: sum number i"


def test_a_model_without_tools_is_left_out_with_the_reason(router: UniRouter) -> None:
    """By its profile, or because its class has no bind_tools; the decision says why."""
    models = {**fakes(abacus={"tool_calling": False}), "poet": ChatFake(model="poet")}
    bound = ChatUniRouter(router=router, models=models).bind_tools([multiply])
    with collect_runs() as runs:
        answer = bound.invoke("sum number 1 2")
    noted = answer.response_metadata["unirouter"]
    assert noted["model"] == "oracle"
    expected = [{"model": "abacus", "kind": "incapable", "reason": "it takes no tools"}]
    assert noted["excluded"] == expected
    metadata = (runs.traced_runs[0].extra or {})["metadata"]
    assert metadata["unirouter_model"] == "oracle"
    assert metadata["unirouter_excluded"] == expected


@pytest.mark.parametrize(
    ("profile", "block", "reason"),
    [
        ({"image_inputs": False}, {"type": "image", "url": "https://x/y.png"}, "it takes no image inputs"),
        ({"image_inputs": False}, {"type": "image_url", "image_url": {"url": "x"}}, "it takes no image inputs"),
        ({"attachment": False}, {"type": "file", "base64": "AA==", "mime_type": "x"}, "it takes no pdf inputs"),
        ({"attachment": False}, {"type": "image", "url": "https://x/y.png"}, "it takes no image inputs"),
        ({"pdf_inputs": False}, {"type": "file", "base64": "AA==", "mime_type": "x"}, "it takes no pdf inputs"),
        ({"audio_inputs": False}, {"type": "audio", "base64": "AA=="}, "it takes no audio inputs"),
        ({"max_input_tokens": 100}, {"type": "text", "text": "word " * 200}, "limited to 100 tokens"),
    ],
)
def test_input_a_model_cannot_take_goes_elsewhere(
    router: UniRouter, profile: dict[str, Any], block: dict[str, Any], reason: str
) -> None:
    """Judged by the text all the same."""
    llm = ChatUniRouter(router=router, models=fakes(abacus=profile))
    assert llm.invoke("sum number i").response_metadata["unirouter"]["model"] == "abacus"
    noted = llm.invoke([HumanMessage([{"type": "text", "text": "sum number i"}, block])]).response_metadata["unirouter"]
    assert noted["model"] == "oracle"
    (excluded,) = noted["excluded"]
    assert (excluded["model"], excluded["kind"]) == ("abacus", "incapable")
    assert reason in excluded["reason"]


def test_what_a_profile_states_counts_more_than_what_follows_from_it(router: UniRouter) -> None:
    """A model without attachments may take images, and one of which nothing is known any input."""
    image = [HumanMessage([{"type": "text", "text": "sum number i"}, {"type": "image", "url": "x"}])]
    for profile in ({"attachment": False, "image_inputs": True}, {"attachment": True}, {}):
        llm = ChatUniRouter(router=router, models=fakes(abacus=profile))
        assert llm.invoke(image).response_metadata["unirouter"]["model"] == "abacus"


def test_a_call_that_no_model_can_take_is_a_clear_error(router: UniRouter) -> None:
    """It names each model with the reason, and quotes nothing of the input."""
    llm = ChatUniRouter(
        router=router, models=fakes(**{n: {"image_inputs": False} for n in ("abacus", "poet", "oracle")})
    )
    with pytest.raises(
        NoModelError, match=r"abacus: it takes no image inputs; poet: .*Register one that can"
    ) as caught:
        llm.invoke([HumanMessage([{"type": "text", "text": "sum SECRET"}, {"type": "image", "url": "x"}])])
    assert "SECRET" not in str(caught.value)


def test_a_mixed_batch_is_embedded_once_and_each_input_goes_where_it_can(router: UniRouter) -> None:
    """Texts to the specialist, an image to the model that sees."""
    llm = ChatUniRouter(router=router, models=fakes(abacus={"image_inputs": False}))
    image = [HumanMessage([{"type": "text", "text": "sum number i"}, {"type": "image", "url": "x"}])]
    answers = llm.batch(["sum number i", image, "poem number i"])
    assert [answer.response_metadata["unirouter"]["model"] for answer in answers] == ["abacus", "oracle", "poet"]


async def test_a_call_can_be_steered_by_its_config(llm: ChatUniRouter) -> None:
    """A cost weight, candidates or a model for one call; by keyword as well."""

    def chosen(config: Any, **keywords: Any) -> str:
        return str(llm.invoke("sum number i", config, **keywords).response_metadata["unirouter"]["model"])

    assert chosen(None) == "abacus"
    assert chosen({"configurable": {"unirouter_model": "poet"}}) == "poet"
    assert chosen({"configurable": {"unirouter_among": ["poet", "oracle"]}}) == "oracle"
    assert chosen({"configurable": {"unirouter_among": ["poet", "oracle"], "unirouter_cost_weight": 1}}) == "poet"
    assert chosen(None, model="poet") == "poet"
    assert (await llm.ainvoke("sum number i", model="poet")).text == "poet: sum number i"
    weights = [{"configurable": {"unirouter_model": name}} for name in ("poet", "abacus")]
    answers = llm.batch(["sum number i"] * 2, weights)  # type: ignore[arg-type]  # configs are plain dicts
    assert [answer.response_metadata["unirouter"]["model"] for answer in answers] == ["poet", "abacus"]
    with pytest.raises(UnknownModelError, match="no model 'nobody'; the models are 'abacus'"):
        chosen({"configurable": {"unirouter_model": "nobody"}})
    with pytest.raises(UnknownModelError, match="no model 'nobody'"):
        chosen(None, model="nobody")
    with pytest.raises(ValueError, match="cost_weight should be a number"):
        chosen({"configurable": {"unirouter_cost_weight": -1}})


def test_fields_are_configurable_as_of_any_runnable(llm: ChatUniRouter) -> None:
    """LangChain's own way, through a chain."""
    from langchain_core.runnables import ConfigurableField

    adjustable = llm.configurable_fields(cost_weight=ConfigurableField(id="weight"))
    chain = ChatPromptTemplate.from_template("{q}") | adjustable | StrOutputParser()
    assert chain.invoke({"q": "date number i"}) == "oracle: date number i"
    assert chain.with_config(configurable={"weight": 5}).invoke({"q": "date number i"}).startswith("abacus")


def test_the_profile_says_what_a_call_can_reach(router: UniRouter) -> None:
    """The longest input of any, the shortest output, an image if one sees; nothing if one says nothing."""
    profiles: dict[str, dict[str, Any]] = {
        "abacus": {"max_input_tokens": 100, "max_output_tokens": 9, "image_inputs": False, "structured_output": True},
        "poet": {"max_input_tokens": 900, "max_output_tokens": 5, "image_inputs": True, "structured_output": True},
        "oracle": {"max_input_tokens": 500, "max_output_tokens": 7, "image_inputs": True, "structured_output": True},
    }
    joint = ChatUniRouter(router=router, models=fakes(**profiles)).profile
    assert joint == {"max_input_tokens": 900, "max_output_tokens": 5, "image_inputs": True}
    del profiles["poet"]
    assert not ChatUniRouter(router=router, models=fakes(**profiles)).profile


def test_tokens_are_counted_by_a_model(llm: ChatUniRouter) -> None:
    """Without a download."""
    assert llm.get_num_tokens("one two three") == 3
    assert llm.get_num_tokens_from_messages([SystemMessage("one"), HumanMessage("two three")]) > 0


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_the_v3_stream_is_the_chosen_models(llm: ChatUniRouter) -> None:
    """Text in pieces, counted once."""
    handler = UsageMetadataCallbackHandler()
    stream = llm.stream_events("sum number i", {"callbacks": [handler]}, version="v3")
    assert "".join(stream.text) == "abacus: sum number i"
    awaited = await llm.astream_events("poem number i", version="v3")
    assert "".join([piece async for piece in awaited.text]) == "poet: poem number i"
    assert list(handler.usage_metadata) == ["abacus"]


def test_long_input_is_measured_without_a_tokenizer(router: UniRouter) -> None:
    """A megabyte, at four characters a token."""
    models = {name: ChatFake(model=name, replies=["ok"]) for name in router.models}
    models["abacus"] = ChatFake(model="abacus", replies=["ok"], profile={"max_input_tokens": 1000})
    noted = ChatUniRouter(router=router, models=models).invoke("sum " * 250_000).response_metadata["unirouter"]
    assert noted["model"] == "oracle"
    (excluded,) = noted["excluded"]
    assert excluded["reason"] == "its input is limited to 1,000 tokens, and this one has about 250,000"


def test_an_input_that_is_too_long_for_all_goes_to_those_with_the_highest_limit(router: UniRouter) -> None:
    """Lengths are estimates, and limits often defaults; a model that states none may always take it."""
    limits = {"abacus": 100, "poet": 200, "oracle": 200}
    llm = ChatUniRouter(router=router, models=fakes(**{name: {"max_input_tokens": n} for name, n in limits.items()}))
    noted = llm.invoke("sum number " * 100).response_metadata["unirouter"]
    assert (noted["model"], [each["model"] for each in noted["excluded"]]) == ("oracle", ["abacus"])
    llm.models["poet"] = ChatFake(model="poet")
    noted = llm.invoke("sum number " * 100).response_metadata["unirouter"]
    assert (noted["model"], [each["model"] for each in noted["excluded"]]) == ("poet", ["abacus", "oracle"])
    (alone,) = (ChatUniRouter(router=router, models=fakes(abacus={"max_input_tokens": 5})),)
    assert alone.invoke("sum number " * 100, model="abacus").response_metadata["unirouter"]["model"] == "abacus"


def test_models_may_be_named_for_init_chat_model(router: UniRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made at once; without langchain the message says what to install."""
    pytest.importorskip("langchain_openai")
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    llm = ChatUniRouter(router=router, models={"abacus": "openai:gpt-5-nano", "oracle": ChatFake()})
    llm.register("poet", "openai:gpt-5", router.profiles["poet"])
    assert [type(llm.models[name]).__name__ for name in ("abacus", "poet")] == ["ChatOpenAI", "ChatOpenAI"]
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(
        ImportError, match=r"'abacus' is named by a string, 'openai:gpt-5-nano'; .* pip install langchain"
    ):
        ChatUniRouter(router=router, models={"abacus": "openai:gpt-5-nano"})
