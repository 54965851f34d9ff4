"""`ModelRegistry`: models, prices and capabilities that change while calls are in flight, and health that is shared."""

import re
import threading
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from unirouter_integrations import InvalidInputError, UniRouter
from unirouter_integrations.grading import Price
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import ModelRegistry
from unirouter_integrations.testing import ChatFake

NAMES = ("abacus", "poet", "oracle")


def fakes() -> dict[str, Any]:
    return {name: ChatFake(model=name) for name in NAMES}


def test_it_is_a_dict_of_models_with_prices() -> None:
    """A model that is replaced keeps its price, unless it comes with another one."""
    registry = ModelRegistry(fakes(), prices={"poet": Price(1, 2)})
    assert list(registry) == list(NAMES)
    assert (registry.price("poet"), registry.price("abacus"), registry.price("nobody")) == (Price(1, 2), None, None)
    registry["poet"] = ChatFake(model="new")
    assert registry.price("poet") == Price(1, 2)
    registry.register("poet", ChatFake(model="newer"), price=Price(3, 4))
    registry.register("poet", ChatFake(model="newest"))
    assert registry.price("poet") == Price(3, 4)
    del registry["poet"]
    assert "poet" not in registry
    assert repr(registry) == "ModelRegistry(['abacus', 'oracle'])"
    assert list(deepcopy(registry)) == ["abacus", "oracle"]


def test_it_declares_what_models_are_capable_of(router: UniRouter) -> None:
    """Before what a model itself states; a model that is replaced keeps it, unless it comes with other capabilities."""
    registry = ModelRegistry(fakes(), capabilities={"poet": {"image_inputs": False}})
    registry.register("oracle", ChatFake(model="oracle", profile={"image_inputs": False}))
    llm = ChatUniRouter(router=router, models=registry)
    image = [HumanMessage([{"type": "text", "text": "poem"}, {"type": "image", "url": "x"}])]

    def answered() -> tuple[str, list[str]]:
        noted = llm.invoke(image).response_metadata["unirouter"]
        return noted["model"], [each["model"] for each in noted["excluded"]]

    assert answered() == ("abacus", ["poet", "oracle"])
    registry["poet"] = ChatFake(model="poet", profile={"image_inputs": True})
    assert (answered(), registry.capabilities("poet")) == (("abacus", ["poet", "oracle"]), {"image_inputs": False})
    registry.register("oracle", registry["oracle"], capabilities={"image_inputs": True, "max_input_tokens": 9000})
    assert answered() == ("oracle", ["poet"])
    assert (registry.capabilities("abacus"), registry.capabilities("nobody")) == ({}, {})
    for wrong, match in (
        ({"image_input": True}, "'poet' is capable of has no 'image_input'. Did you mean 'image_inputs'"),
        ({"speed": 9}, "has no 'speed'. Known are audio_inputs, image_inputs, max_input_tokens"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(match)):
            registry.register("poet", ChatFake(), capabilities=wrong)
    with pytest.raises(InvalidInputError, match=r"capabilities names a model that is not there: .* 'bard'"):
        ModelRegistry(fakes(), capabilities={"bard": {}})


def test_the_profile_of_a_router_is_that_of_what_is_declared(router: UniRouter) -> None:
    """An agent reads from it what a call can reach."""
    declared = {name: {"max_input_tokens": 100 * n} for n, name in enumerate(NAMES, 1)}
    assert ChatUniRouter(router=router, models=ModelRegistry(fakes(), capabilities=declared)).profile == {
        "max_input_tokens": 300
    }


def test_it_takes_the_models_of_both_frameworks(router: UniRouter) -> None:
    """By their methods; which of them are chat models of LangChain, the face knows."""

    class LLM:
        """As LlamaIndex has it."""

        async def achat(self, messages: object) -> object: ...

    registry = ModelRegistry({**fakes(), "poet": LLM(), "oracle": "openai:gpt-5-nano"})
    assert [*registry] == [*NAMES]
    with pytest.raises(ValueError, match="'poet' should be a LangChain chat model, bare or bound, not LLM"):
        ChatUniRouter(router=router, models=registry)


def test_its_health_is_shared_but_not_with_a_copy(router: UniRouter) -> None:
    """What fails for one router cools down for the other; a cooldown is each router's own setting."""
    registry = ModelRegistry({**fakes(), "poet": ChatFake(model="poet", error=TimeoutError())})
    before = deepcopy(registry)
    first, second = (ChatUniRouter(router=router, models=registry) for _ in range(2))
    for llm in (first, second, first, second, second, first, second):
        assert llm.invoke("poem").text == "oracle: poem"
    assert registry["poet"].n_calls == 5
    assert [*registry.health.cooling_down(registry)] == ["poet"]
    assert before.health.cooling_down(registry) == {}


@pytest.mark.parametrize(
    ("models", "prices", "match"),
    [
        ({"poet": object()}, {}, "The model 'poet' should be a LangChain chat model, a LlamaIndex LLM, .* not object"),
        ({"poet": ChatFake}, {}, "The model 'poet' should be a LangChain chat model, .* not ModelMetaclass"),
        ({7: ChatFake()}, {}, "The name of a model should be a text of 1 to 200 printable characters, but is 7"),
        ({"poet": ChatFake()}, {"bard": Price(1, 2)}, "prices names a model that is not there: .* 'bard'"),
        ({"poet": ChatFake()}, {"poet": 2.0}, r"The price of 'poet' should be a Price\(input, output\), not float"),
    ],
)
def test_what_does_not_fit_is_refused(models: Any, prices: Any, match: str) -> None:
    """The message names the model."""
    with pytest.raises(InvalidInputError, match=match):
        ModelRegistry(models, prices=prices)


def test_one_registry_serves_several_routers(router: UniRouter) -> None:
    """What one of them registers, with its price, the other may choose; so may chains made before."""
    registry = ModelRegistry(fakes())
    first, second = (ChatUniRouter(router=router, models=registry) for _ in range(2))
    profile = router.profile("bargain", ["sum", "poem", "date"], [1, 1, 1], cost=0)
    first.register("bargain", ChatFake(model="bargain"), profile, price=Price(0, 0))
    assert second.invoke("sum number i").text == "bargain: sum number i"
    assert registry.price("bargain") == Price(0, 0)
    second.unregister("bargain")
    assert first.invoke("sum number i").text == "abacus: sum number i"
    with pytest.raises(InvalidInputError, match="A dict of models has no place for the price of 'bargain'"):
        ChatUniRouter(router=router, models=fakes()).register("bargain", ChatFake(), profile, price=Price(0, 0))


def test_options_of_a_call_hold_for_one_router_only(router: UniRouter) -> None:
    """A router that is one of the models decides on its own."""
    team = ChatUniRouter(router=router, models=fakes())
    outer_router = UniRouter(router.clusters)
    outer_router.register(outer_router.profile("team", ["sum"], [1], cost=1))
    outer_router.register(outer_router.profile("other", ["sum"], [0], cost=1))
    outer = ChatUniRouter(router=outer_router, models={"team": team, "other": ChatFake(model="other")})
    for options in ({"unirouter_model": "team"}, {"unirouter_among": ["team"]}):
        assert outer.invoke("sum", config={"configurable": options}).text == "abacus: sum"
    wrongs: list[Any] = ["team", [], 5, [["team"]]]
    for wrong in wrongs:
        with pytest.raises(InvalidInputError, match="among should be a list of one or more names"):
            outer.invoke("sum", config={"configurable": {"unirouter_among": wrong}})


def test_a_price_that_is_needed_is_asked_for_before_anything_changes(router: UniRouter) -> None:
    """Otherwise every later call would fail."""
    prices = {name: Price(1, 2) for name in NAMES}
    llm = ChatUniRouter(router=router, models=ModelRegistry(fakes(), prices=prices), sticky="cache")
    profile = router.profile("bargain", ["sum", "poem", "date"], [1, 1, 1], cost=0)
    with pytest.raises(InvalidInputError, match="needs the price of 'bargain'"):
        llm.register("bargain", ChatFake(), profile)
    assert "bargain" not in router.models
    llm.register("bargain", ChatFake(model="bargain"), profile, price=Price(0, 0))
    assert llm.invoke("sum").text == "bargain: sum"


def test_a_model_that_is_replaced_has_the_price_it_was_profiled_at(router: UniRouter) -> None:
    """Not that of the model before it."""
    llm = ChatUniRouter(router=router, models=ModelRegistry(fakes(), prices={name: Price(1, 2) for name in NAMES}))
    noted = {"price": {"input": 50.0, "output": 60.0}}
    profile = router.profile("poet", ["sum", "poem"], [1, 1], cost=1, metadata=noted)
    llm.register("poet", ChatFake(model="poet"), profile)
    assert isinstance(llm.models, ModelRegistry)
    assert llm.models.price("poet") == Price(50, 60)
    llm.register("poet", ChatFake(model="poet"), profile, price=Price(7, 8))
    assert llm.models.price("poet") == Price(7, 8)


def test_models_come_and_go_while_calls_are_in_flight(router: UniRouter) -> None:
    """No call fails, and every answer is that of the model its decision names."""
    registry = ModelRegistry(fakes())
    llm = ChatUniRouter(router=router, models=registry)
    profile = router.profile("bargain", ["sum", "poem", "date"], [1, 1, 1], cost=0)
    going_on = threading.Event()
    failed: list[object] = []

    def change() -> None:
        while not going_on.is_set():
            llm.register("bargain", ChatFake(model="bargain"), profile)
            registry["oracle"] = ChatFake(model="oracle")
            llm.unregister("bargain")

    def call() -> None:
        try:
            failed.extend(answer for _ in range(20) for answer in wrong(llm.batch(["sum number i"] * 2)))
        except Exception as error:  # noqa: BLE001  # a thread's errors would be lost
            failed.append(error)

    changing = [threading.Thread(target=change)]
    calling = [threading.Thread(target=call) for _ in range(4)]
    for thread in (*changing, *calling):
        thread.start()
    for thread in calling:
        thread.join()
    going_on.set()
    changing[0].join()
    assert failed == []


def wrong(answers: list[AIMessage]) -> Iterator[AIMessage]:
    """Those that are not of the model that their decision names."""
    return (each for each in answers if not each.text.startswith(each.response_metadata["unirouter"]["model"] + ":"))
