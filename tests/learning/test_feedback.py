"""Feedback that comes later: by run id, or with the answer."""

import json
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel

from unirouter_integrations import UniRouter
from unirouter_integrations.langchain import ChatUniRouter, UniRouterFeedback
from unirouter_integrations.testing import ChatFake

NEVER = 1e6  # seconds: only sync() learns


@pytest.fixture
def llm(router: UniRouter) -> ChatUniRouter:
    return ChatUniRouter(router=router, models={name: ChatFake(model=name) for name in router.models})


def chain_of(llm: ChatUniRouter) -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_template("{kind} number i") | llm | StrOutputParser()


def test_a_score_for_a_run_teaches_the_model_that_answered(router: UniRouter, llm: ChatUniRouter) -> None:
    """The id of the whole chain's run is enough, as a text or not."""
    feedback, chain = UniRouterFeedback(router), chain_of(llm)
    with router.learn(every=NEVER, half_life=5) as learning:
        for _ in range(30):
            run_id = uuid4()
            chain.invoke({"kind": "sum"}, RunnableConfig(run_id=run_id, callbacks=[feedback]))
            assert feedback.observe(str(run_id), 0, cost=1) == 1
        learning.sync()
    assert chain.invoke({"kind": "sum"}).startswith("oracle")
    assert chain.invoke({"kind": "poem"}).startswith("poet")


async def test_a_run_with_several_decisions_scores_them_all(router: UniRouter, llm: ChatUniRouter) -> None:
    """Awaited and streamed as well; the same decision twice in a run counts once."""
    feedback = UniRouterFeedback(router)
    chain = RunnableParallel(a=chain_of(llm), b=ChatPromptTemplate.from_template("poem {kind}") | llm)
    ids = [uuid4(), uuid4()]
    await chain.ainvoke({"kind": "sum"}, RunnableConfig(run_id=ids[0], callbacks=[feedback]))
    async for _ in chain_of(llm).astream({"kind": "date"}, RunnableConfig(run_id=ids[1], callbacks=[feedback])):
        pass
    with router.learn(every=NEVER) as learning:
        assert [feedback.observe(run_id, 1) for run_id in ids] == [2, 1]
        assert feedback.observe(uuid4(), 1) == 0
        learning.sync()


def test_the_decision_of_a_call_that_failed_is_not_scored(router: UniRouter) -> None:
    """The one that took over is."""
    models = {name: ChatFake(model=name) for name in router.models}
    models["abacus"] = ChatFake(model="abacus", error=TimeoutError())
    llm, feedback = ChatUniRouter(router=router, models=models, fallback=True), UniRouterFeedback(router)
    run_id = uuid4()
    assert chain_of(llm).invoke({"kind": "sum"}, RunnableConfig(run_id=run_id, callbacks=[feedback])) != ""
    (decision,) = feedback._decisions[run_id]
    assert decision["model"] != "abacus"


def test_the_calls_of_one_loop_of_tools_are_one_decision(router: UniRouter) -> None:
    """Also if a better model joined meanwhile, so that a later call only keeps the model that began."""
    models = {name: ChatFake(model=name) for name in router.models}
    llm, feedback, run_id = ChatUniRouter(router=router, models=models), UniRouterFeedback(router), uuid4()

    def count(n: int) -> int:
        """Count."""
        return n

    def loop(question: str, config: RunnableConfig) -> str:
        messages: list[BaseMessage] = [HumanMessage(question)]
        messages.append(llm.bind_tools([count]).invoke(messages, config))
        router.register(router.profile("better", ["sum", "poem"], [1, 1], cost=0))
        models["better"] = ChatFake(model="better")
        messages.append(ToolMessage("3", tool_call_id="1"))
        return llm.bind_tools([count]).invoke(messages, config).text

    config = RunnableConfig(run_id=run_id, callbacks=[feedback])
    assert RunnableLambda(loop).invoke("poem 3", config).startswith("poet")
    assert feedback.observe(run_id, 1) == 1


def test_only_the_last_runs_are_remembered(router: UniRouter, llm: ChatUniRouter) -> None:
    """So that a server may run for ever; and no prompt is."""
    feedback, ids = UniRouterFeedback(router, max_runs=6), [uuid4() for _ in range(20)]
    for run_id in ids:
        chain_of(llm).invoke({"kind": "sum secret"}, RunnableConfig(run_id=run_id, callbacks=[feedback]))
    assert feedback.observe(ids[-1], 1) == 1
    assert feedback.observe(ids[0], 1) == 0
    assert max(len(kept) for kept in (feedback._roots, feedback._started, feedback._decisions)) <= 6
    assert "secret" not in repr(vars(feedback))


def test_an_answer_that_was_stored_can_be_scored(router: UniRouter, llm: ChatUniRouter) -> None:
    """Its metadata is the decision as plain JSON."""
    answer = llm.invoke("a sum")
    with router.learn(every=NEVER) as learning:
        before = router.profiles["abacus"].losses.sum()
        assert router.observe(json.loads(json.dumps(answer.response_metadata["unirouter"])), 0)
        learning.sync()
    assert router.profiles["abacus"].losses.sum() > before - 1


def test_an_answer_that_somebody_else_gave_is_not_scored(router: UniRouter) -> None:
    """Somebody who calls another model after a failure, and hands on what the first one was called with."""
    feedback, run_id = UniRouterFeedback(router), uuid4()
    noted = {f"unirouter_{key}": value for key, value in router.route("poem").as_dict().items()}
    failing, spare = ChatFake(model="poet", error=TimeoutError()), ChatFake(model="spare")
    chain = failing.with_fallbacks([spare])
    assert (
        chain.invoke("poem", RunnableConfig(run_id=run_id, callbacks=[feedback], metadata=noted)).text == "spare: poem"
    )
    assert feedback.observe(run_id, 1) == 0
    failing.n_errors, failing.error, again = 1, TimeoutError(), uuid4()
    failing.n_calls = 0
    retried = failing.with_retry(retry_if_exception_type=(TimeoutError,), wait_exponential_jitter=False)
    retried.invoke("poem", RunnableConfig(run_id=again, callbacks=[feedback], metadata=noted))
    assert feedback.observe(again, 1) == 1


def test_a_model_that_refused_by_an_error_after_its_answer_is_not_scored(router: UniRouter) -> None:
    """As a parser of forms does, when the model's run has ended well."""

    class OpenAIRefusalError(Exception):
        """As langchain-openai has it."""

    class Refusing(ChatFake):
        def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
            def parse(message: Any) -> Any:
                raise OpenAIRefusalError

            return self | RunnableLambda(parse)

    models = {name: ChatFake(model=name) for name in router.models}
    models["poet"] = Refusing(model="poet")
    llm = ChatUniRouter(router=router, models=models, fallback="refusals")
    feedback, run_id = UniRouterFeedback(router), uuid4()
    form = {"title": "T", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    chain = ChatPromptTemplate.from_template("{kind} 3") | llm.with_structured_output(form)
    assert chain.invoke({"kind": "poem"}, RunnableConfig(run_id=run_id, callbacks=[feedback])) == {"n": 3}
    assert feedback.observe(run_id, 1) == 1


def test_models_left_out_for_what_they_lack_keep_their_credit(router: UniRouter) -> None:
    """In the same run another call went to them; they were not replaced."""
    models = {name: ChatFake(model=name) for name in router.models}
    models["poet"] = ChatFake(model="poet", profile={"tool_calling": False})
    llm, feedback, run_id = ChatUniRouter(router=router, models=models), UniRouterFeedback(router), uuid4()

    def count(n: int) -> int:
        """Count."""
        return n

    chain = RunnableParallel(plain=llm, tools=llm.bind_tools([count]))
    answers = chain.invoke("a poem", RunnableConfig(run_id=run_id, callbacks=[feedback]))
    assert answers["plain"].response_metadata["unirouter"]["model"] == "poet"
    assert [each["model"] for each in answers["tools"].response_metadata["unirouter"]["excluded"]] == ["poet"]
    assert feedback.observe(run_id, 1) == 2


async def test_a_run_id_of_the_caller_finds_the_decision_of_the_model_that_took_over(router: UniRouter) -> None:
    """Whose run has an id of its own: called by itself, in a chain, streamed."""
    models = {name: ChatFake(model=name) for name in router.models}
    models["abacus"] = ChatFake(model="abacus", error=TimeoutError())
    llm, feedback = ChatUniRouter(router=router, models=models), UniRouterFeedback(router)
    ids = [uuid4() for _ in range(4)]
    configs = [RunnableConfig(run_id=run_id, callbacks=[feedback]) for run_id in ids]
    llm.invoke("sum 3", configs[0])
    await llm.ainvoke("sum 3", configs[1])
    list(llm.stream("sum 3", configs[2]))
    chain_of(llm).invoke({"kind": "sum"}, configs[3])
    assert [feedback.observe(run_id, 1) for run_id in ids] == [1] * 4
    assert all(decision["model"] != "abacus" for run_id in ids for decision in feedback._decisions[run_id])


def test_equal_decisions_of_different_prompts_count_each(router: UniRouter, llm: ChatUniRouter) -> None:
    """In a fan-out three prompts of one kind are three observations."""
    feedback, run_id = UniRouterFeedback(router), uuid4()
    fan_out: Runnable[str, Any] = RunnableLambda(lambda _: llm.batch(["sum 1", "sum 2", "sum 3"]))
    fan_out.invoke("", RunnableConfig(run_id=run_id, callbacks=[feedback]))
    assert feedback.observe(run_id, 1) == 3
