"""What a conversation is judged by in LlamaIndex: the messages of chats, engines and agents."""

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.agent.workflow import CodeActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llamaindex_fakes import fakes, watched
from pydantic import ValidationError

from unirouter_integrations import UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM

LONG = {name: f"{kind} that {'really ' * 8}matters" for name, kind in {"abacus": "a sum", "poet": "a poem"}.items()}
SAID = [
    ChatMessage("poem poem poem", role="system"),
    ChatMessage("a date"),
    ChatMessage("it was", role="assistant"),
    ChatMessage(LONG["abacus"]),
]


def chosen(llm: UniRouterLLM, messages: Sequence[ChatMessage]) -> str:
    return str(llm.chat(messages).additional_kwargs["unirouter"]["model"])


def first_text(messages: Sequence[ChatMessage]) -> str:
    return str(messages[0].content)


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
async def test_follow_ups_keep_their_subject(router: UniRouter) -> None:
    """A question with one of its own does not inherit the last one."""
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
    engine = SimpleChatEngine.from_defaults(llm=UniRouterLLM(router=router, models=fakes()), memory=memory)
    for name, question in LONG.items():
        for text in (question, "and in words?", "continue"):
            assert str(engine.chat(text)).startswith(name)
        assert str(await engine.achat("Pourquoi ?")).startswith(name)


@pytest.mark.parametrize(
    ("judged_by", "last", "name"),
    [
        ("recent_human", "continue", "abacus"),
        ("last_human", "poem", "poet"),
        ("system_and_last_human", "continue", "poet"),
        ("conversation", "poem", "oracle"),
        (first_text, "continue", "poet"),
    ],
)
async def test_what_a_chat_is_judged_by_can_be_chosen(router: UniRouter, judged_by: Any, last: str, name: str) -> None:
    """With tools and in templates as well, and after a pickle."""
    llm = UniRouterLLM(router=router, models=fakes(), judged_by=judged_by)
    messages = [*SAID, ChatMessage("it is", role="assistant"), ChatMessage(last)]
    assert chosen(llm, messages) == name
    assert (await llm.achat_with_tools([], last, messages[:-1])).additional_kwargs["unirouter"]["model"] == name
    assert llm.predict(ChatPromptTemplate(messages)).startswith(name)
    assert llm.predict(PromptTemplate("poem date {query_str}"), query_str="a sum").startswith("abacus")
    copy = pickle.loads(pickle.dumps(llm))  # noqa: S301  # our own
    copy.models.update(llm.models)
    assert chosen(copy, messages) == name


def test_only_these_ways_are_known(router: UniRouter) -> None:
    """A typing error is found at once."""
    with pytest.raises(ValidationError, match="judged_by"):
        UniRouterLLM(router=router, models=fakes(), judged_by="last_human_message")


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_code_agent_keeps_a_question_with_its_model(router: UniRouter, streaming: Any) -> None:
    """Though it reports what its code gave as the user."""

    def reply(messages: Sequence[ChatMessage]) -> str:
        reported = [message for message in messages if str(message.content).startswith("Result of executing")]
        return "It is done." if len(reported) > 1 else "<execute>write(poem)</execute>"

    async def execute(code: str) -> str:
        return "poem " * 20

    llm = UniRouterLLM(router=router, models=fakes(**{name: {"reply": reply} for name in ("abacus", "poet", "oracle")}))
    agent: Any = CodeActAgent(execute, llm=llm, streaming=streaming)
    with watched() as watch:
        response = await agent.run(user_msg="a sum", memory=ChatMemoryBuffer.from_defaults(token_limit=3000))
    assert str(response) == "It is done."
    assert [event.model for event in watch.of("UniRouteDecisionEvent")] == ["abacus"] * 3


async def test_a_conversation_may_stay_with_its_model(router: UniRouter) -> None:
    """With `sticky="thread"`, for as long as that can go on; else each question is decided anew."""
    for sticky, model in (("tools", "abacus"), ("thread", "poet")):
        llm = UniRouterLLM(router=router, models=fakes(), sticky=sticky)
        memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
        assert str(engine.chat(LONG["poet"])).startswith("poet")
        assert str(engine.chat(LONG["abacus"])).startswith(model)
        assert str(await engine.achat(LONG["poet"])).startswith("poet")
    llm.unregister("poet")
    assert str(engine.chat(LONG["abacus"])).startswith("abacus")
    with pytest.raises(ValidationError, match="sticky"):
        UniRouterLLM(router=router, models=fakes(), sticky="cache")
