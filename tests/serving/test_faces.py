"""What every face does with a call, however it is called. A face is a chat model, an agent, an LLM, a query engine."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_scores

pytest.importorskip("langchain_core")

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatResult

from unirouter_integrations import InvalidInputError, UniRouter, UnknownModelError
from unirouter_integrations.grading import Answer, Example
from unirouter_integrations.langchain import ChatUniRouter
from unirouter_integrations.serving import Health, ModelRegistry
from unirouter_integrations.testing import ChatFake

NAMES = ("abacus", "poet", "oracle")
Seen = tuple[str, list[tuple[str, str, str]]]
"""The model that answered, and the model, kind and reason of each exclusion."""


class LimitError(Exception):
    """A rate limit."""

    status_code = 429


class BadRequestError(Exception):
    """What the caller asks for is wrong, whichever model it is asked of."""

    status_code = 400


class AuthenticationError(Exception):
    """A key that is no longer valid."""

    status_code = 401


class OpenAIRefusalError(Exception):
    """A refusal that is an error, as langchain-openai has it."""


class Face(Protocol):
    """A way into the package, as an application uses it."""

    ways: tuple[str, ...]
    """How it can be called."""
    streams: tuple[str, ...]
    """Those whose answers can be neither refused nor checked, because they have begun to arrive."""

    def model(self, name: str, *, error: Exception | None = None, refuses: bool = False) -> Any:
        """A model that answers with its name and the question, or raises an error, or refuses."""

    def n_calls(self, model: Any) -> int:
        """How often a model was called."""

    def make(self, router: UniRouter, models: Any, **settings: Any) -> Any:
        """The face over some models."""

    async def ask(self, face: Any, way: str, question: str, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """The text and the decision of an answer; `options` are those of the call, without the prefix."""


class RefusingFake(ChatFake):
    """Refuses, as OpenAI reports it."""

    def _generate(self, *arguments: Any, **keywords: Any) -> ChatResult:
        result = super()._generate(*arguments, **keywords)
        result.generations[0].message.additional_kwargs["refusal"] = "I cannot help with that."
        return result


class LangChainFace:
    """What the faces for LangChain have in common."""

    def model(self, name: str, *, error: Exception | None = None, refuses: bool = False) -> ChatFake:
        return (RefusingFake if refuses else ChatFake)(model=name, error=error)

    def n_calls(self, model: ChatFake) -> int:
        return model.n_calls

    def config(self, options: Mapping[str, Any]) -> Any:
        return {"configurable": {f"unirouter_{name}": value for name, value in options.items()}}


class ChatFace(LangChainFace):
    """`ChatUniRouter`."""

    ways: tuple[str, ...] = ("invoke", "ainvoke", "batch", "abatch", "stream", "astream")
    streams: tuple[str, ...] = ("stream", "astream")

    def make(self, router: UniRouter, models: Any, **settings: Any) -> ChatUniRouter:
        return ChatUniRouter(router=router, models=models, **settings)

    async def ask(self, face: Any, way: str, question: str, **options: Any) -> tuple[str, Mapping[str, Any]]:
        config = self.config(options)
        answer: Any
        match way:
            case "invoke":
                answer = face.invoke(question, config)
            case "ainvoke":
                answer = await face.ainvoke(question, config)
            case "batch":
                (answer,) = face.batch([question], config)
            case "abatch":
                (answer,) = await face.abatch([question], config)
            case _:
                chunks = (
                    list(face.stream(question, config))
                    if way == "stream"
                    else [chunk async for chunk in face.astream(question, config)]
                )
                answer = sum(chunks[1:], chunks[0])
        return answer.text, answer.response_metadata["unirouter"]


class AgentFace(LangChainFace):
    """`UniRouterMiddleware` in an agent, which may bring its options in its context."""

    ways: tuple[str, ...] = ("invoke", "ainvoke", "stream", "astream", "invoke with a context")
    streams: tuple[str, ...] = ("stream", "astream")

    def make(self, router: UniRouter, models: Any, **settings: Any) -> Any:
        agents = pytest.importorskip("langchain.agents")
        from unirouter_integrations.langchain import UniRouterMiddleware

        never = ChatFake(model="never", error=AssertionError("the agent's own model was called"))
        return agents.create_agent(never, middleware=[UniRouterMiddleware(router, models, **settings)])

    async def ask(self, face: Any, way: str, question: str, **options: Any) -> tuple[str, Mapping[str, Any]]:
        config, asked = self.config(options), {"messages": [HumanMessage(question)]}
        if way.endswith("stream"):
            parts = (
                list(face.stream(asked, config, stream_mode="messages"))
                if way == "stream"
                else [part async for part in face.astream(asked, config, stream_mode="messages")]
            )
            noted = {key.removeprefix("unirouter_"): value for key, value in parts[0][1].items()}
            return "".join(chunk.text for chunk, _ in parts), noted
        match way:
            case "invoke":
                result = face.invoke(asked, config)
            case "ainvoke":
                result = await face.ainvoke(asked, config)
            case _:
                result = face.invoke(asked, context=config["configurable"])
        answers = [message for message in result["messages"] if isinstance(message, AIMessage)]
        return answers[-1].text, answers[-1].response_metadata["unirouter"]


FACES: dict[str, Face] = {"ChatUniRouter": ChatFace(), "UniRouterMiddleware": AgentFace()}
every_face = pytest.mark.parametrize("face", FACES.values(), ids=FACES)
every_way = pytest.mark.parametrize(
    ("face", "way"),
    [pytest.param(face, way, id=f"{name}: {way}") for name, face in FACES.items() for way in face.ways],
)
every_whole_answer = pytest.mark.parametrize(
    ("face", "way"),
    [
        pytest.param(face, way, id=f"{name}: {way}")
        for name, face in FACES.items()
        for way in face.ways
        if way not in face.streams
    ],
)


def models_of(face: Face, **special: Any) -> dict[str, Any]:
    """One for each of the toy router's models; keywords are those that fail, refuse, or are no fakes at all."""
    return {name: special.get(name) or face.model(name) for name in NAMES}


async def seen(face: Face, made: Any, way: str, question: str, **options: Any) -> Seen:
    """Who answered, and who did not, and why; the answer is the one of the model that its decision names."""
    text, decision = await face.ask(made, way, question, **options)
    assert text == f"{decision['model']}: {question}"
    return decision["model"], [(each["model"], each["kind"], each["reason"]) for each in decision.get("excluded", ())]


# ---------------------------------------------------------------- fallback, refusals, cooldown


@every_way
async def test_the_next_best_takes_over_from_a_model_that_fails(face: Face, way: str, router: UniRouter) -> None:
    """Whatever is raised inside its call; the decision names both. Without fallback the error is the caller's."""
    for error in (LimitError(), AuthenticationError(), ZeroDivisionError("a bug"), ValueError("a bug"), KeyError("x")):
        models = models_of(face, poet=face.model("poet", error=error))
        failed = [("poet", "failed", f"it failed with {type(error).__name__}")]
        assert await seen(face, face.make(router, models), way, "a poem") == ("oracle", failed)
    for fallback in (False, lambda error: False):
        models = models_of(face, poet=face.model("poet", error=LimitError()))
        with pytest.raises(LimitError):
            await face.ask(face.make(router, models, fallback=fallback), way, "a poem")
        assert face.n_calls(models["oracle"]) == 0


@every_way
async def test_errors_that_are_the_callers_own_are_raised(face: Face, way: str, router: UniRouter) -> None:
    """Unchanged: no model could do better, so no other one is asked, unless a function of the error says so."""
    for error in (BadRequestError(), InvalidInputError("wrong")):
        models = models_of(face, poet=face.model("poet", error=error))
        with pytest.raises(type(error)) as caught:
            await face.ask(face.make(router, models), way, "a poem")
        assert caught.value is error
        assert face.n_calls(models["oracle"]) == 0
        made = face.make(router, models, fallback=lambda error: True)
        assert (await seen(face, made, way, "a poem"))[0] == "oracle"


@every_way
async def test_a_call_may_have_a_number_of_attempts(face: Face, way: str, router: UniRouter) -> None:
    """The error of the last one is raised."""
    models = models_of(face, poet=face.model("poet", error=LimitError()))
    with pytest.raises(LimitError):
        await face.ask(face.make(router, models, max_attempts=1), way, "a poem")
    assert (await seen(face, face.make(router, models, max_attempts=2), way, "a poem"))[0] == "oracle"


@every_way
async def test_where_all_fail_the_last_error_is_raised(face: Face, way: str, router: UniRouter) -> None:
    """Each is asked once, in the order of the ranking."""
    models = {name: face.model(name, error=LimitError(name)) for name in NAMES}
    with pytest.raises(LimitError, match="abacus"):
        await face.ask(face.make(router, models), way, "a poem")
    assert [face.n_calls(model) for model in models.values()] == [1, 1, 1]


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@every_way
async def test_a_failing_model_cools_down_and_is_probed(face: Face, way: str, router: UniRouter) -> None:
    """After five failures it is asked last; when the time is over, one call probes it, and then it is back."""
    clock, poet, oracle = Clock(), face.model("poet", error=LimitError()), face.model("oracle")
    registry = ModelRegistry(models_of(face, poet=poet, oracle=oracle))
    registry.health = Health(clock)
    made = face.make(router, registry, cooldown=60)
    for _ in range(5):
        assert await seen(face, made, way, "a poem") == ("oracle", [("poet", "failed", "it failed with LimitError")])
    poet.error = None
    model, ((excluded, kind, reason),) = await seen(face, made, way, "a poem")
    assert (model, excluded, kind) == ("oracle", "poet", "cooling_down")
    assert reason.startswith("it failed recently and is cooling down for ")
    assert face.n_calls(poet) == 5
    oracle.error = LimitError()
    among = ["poet", "oracle"]
    failed = [("oracle", "failed", "it failed with LimitError")]
    assert await seen(face, made, way, "a poem", among=among) == ("poet", failed)  # the last resort
    clock.now += 73
    assert await seen(face, made, way, "a poem") == ("poet", [])


@every_way
async def test_a_model_that_is_gone_rests_with_one_warning(
    face: Face, way: str, router: UniRouter, caplog: pytest.LogCaptureFixture
) -> None:
    """For a minute: another model answers meanwhile."""
    clock, poet = Clock(), face.model("poet", error=AuthenticationError())
    registry = ModelRegistry(models_of(face, poet=poet))
    registry.health = Health(clock)
    made = face.make(router, registry)
    for _ in range(3):
        assert (await seen(face, made, way, "a poem"))[0] == "oracle"
    assert face.n_calls(poet) == 1
    warned = "poet is not available (AuthenticationError); it is tried last for a while."
    assert [record.message for record in caplog.records if record.name == "unirouter_integrations"] == [warned]
    poet.error = None
    clock.now += 60
    assert (await seen(face, made, way, "a poem"))[0] == "poet"


@every_whole_answer
async def test_the_next_best_takes_over_after_a_refusal(face: Face, way: str, router: UniRouter) -> None:
    """If that is asked for, of a reported refusal as of one that is an error; if all refuse, the last one stands."""
    models = models_of(face, poet=face.model("poet", refuses=True))
    made = face.make(router, models, fallback="refusals")
    assert await seen(face, made, way, "a poem") == ("oracle", [("poet", "refused", "it refused")])
    assert await seen(face, face.make(router, models), way, "a poem") == ("poet", [])
    models = models_of(face, poet=face.model("poet", error=OpenAIRefusalError()))
    refused = [("poet", "refused", "it failed with OpenAIRefusalError")]
    made = face.make(router, models, fallback="refusals")
    assert await seen(face, made, way, "a poem") == ("oracle", refused)
    with pytest.raises(OpenAIRefusalError):
        await face.ask(face.make(router, models), way, "a poem")
    models = {name: face.model(name, refuses=True) for name in NAMES}
    made = face.make(router, models, fallback="refusals")
    assert (await seen(face, made, way, "a poem"))[0] == "abacus"


# ---------------------------------------------------------------- default model, embedding timeout


class Service:
    """An embedding service that may be away, or hang."""

    name = "service"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.end = threading.Event()

    def embed(self, texts: Any) -> Any:
        if self.hangs:
            self.end.wait(60)
        if self.error is not None:
            raise self.error
        return toy_embed(texts)

    async def aembed(self, texts: Any) -> Any:
        if self.hangs:
            await asyncio.sleep(60)
        return self.embed(texts)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.end.set()


@pytest.fixture
def served(service: Service) -> UniRouter:
    """The toy router, embedded by that service."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=service, n_clusters=3, estimator="mean")
    for name, wrong, cost in (("abacus", ("poem", "date"), 1), ("poet", ("sum", "date"), 2), ("oracle", (), 10)):
        router.register(router.profile(name, TOY_PROMPTS, toy_scores(*wrong), cost=cost))
    return router


@every_way
async def test_a_default_model_answers_what_cannot_be_embedded(
    face: Face, way: str, served: UniRouter, service: Service
) -> None:
    """The decision says why it was not another one; without a default the error is the caller's."""
    made = face.make(served, models_of(face), default="abacus")
    service.error = ConnectionError("away")
    model, excluded = await seen(face, made, way, "a poem, never seen before")
    reason = "the prompt could not be embedded (ConnectionError)"
    assert (model, sorted(excluded)) == ("abacus", [(name, "not_embedded", reason) for name in ("oracle", "poet")])
    with pytest.raises(ConnectionError, match="away"):
        await face.ask(face.make(served, models_of(face)), way, "a poem, never seen before")
    service.error = None
    assert await seen(face, made, way, "a poem, never seen before") == ("poet", [])


@every_way
async def test_an_embedding_that_hangs_is_not_waited_for(
    face: Face, way: str, served: UniRouter, service: Service
) -> None:
    """Longer than the limit."""
    made = face.make(served, models_of(face), default="abacus", embedding_timeout=0.01)
    service.hangs = True
    model, excluded = await seen(face, made, way, "a poem, never seen before")
    assert (model, {kind for _, kind, _ in excluded}) == ("abacus", {"not_embedded"})
    assert all("(TimeoutError)" in reason for _, _, reason in excluded)


# ---------------------------------------------------------------- escalation


@every_whole_answer
async def test_an_answer_that_does_not_pass_goes_on_to_a_better_model(face: Face, way: str, router: UniRouter) -> None:
    """Not to the next best one, which is none the better; if the better one fails, the answer stands."""
    checked: list[tuple[str, str]] = []

    def check(answer: Answer, example: Example) -> bool:
        checked.append((example.prompt, answer.text))
        return "abacus" not in answer.text

    settings: dict[str, Any] = {"escalate": check, "cost_weight": 0.2}
    made = face.make(router, models_of(face), **settings)
    rejected = [("abacus", "rejected", "its answer did not pass")]
    assert await seen(face, made, way, "a date") == ("oracle", rejected)
    assert checked == [("a date", "abacus: a date")]  # there is none better than the oracle, so it is not checked
    assert await seen(face, made, way, "a sum") == ("abacus", [])
    models = models_of(face, oracle=face.model("oracle", error=ZeroDivisionError()))
    assert await seen(face, face.make(router, models, **settings), way, "a date") == ("abacus", [])


# ---------------------------------------------------------------- what a model can take


@every_way
async def test_a_model_that_cannot_take_the_call_is_left_out(face: Face, way: str, router: UniRouter) -> None:
    """By what a registry declares, with the reason; nothing is embedded or called in vain."""
    registry = ModelRegistry(models_of(face), capabilities={"poet": {"max_input_tokens": 3}})
    question = "a poem, a long one"
    model, ((excluded, kind, reason),) = await seen(face, face.make(router, registry), way, question)
    assert (model, excluded, kind) == ("oracle", "poet", "incapable")
    assert reason == "its input is limited to 3 tokens, and this one has about 4"
    assert await seen(face, face.make(router, registry), way, "a poem") == ("poet", [])


# ---------------------------------------------------------------- options of one call


@every_way
async def test_a_call_may_have_its_own_options(face: Face, way: str, router: UniRouter) -> None:
    """A cost weight, candidates, or a model; the weight comes before the face's, and that before the router's."""
    made = face.make(router, models_of(face), cost_weight=0)
    router.cost_weight = 5
    assert (await seen(face, made, way, "a date"))[0] == "oracle"
    assert (await seen(face, made, way, "a date", cost_weight=5))[0] == "abacus"
    assert (await seen(face, made, way, "a sum", among=["poet", "oracle"]))[0] == "oracle"
    assert (await seen(face, made, way, "a date", cost_weight=5, max_error=0.5))[0] == "oracle"
    assert (await seen(face, made, way, "a date", max_cost=1.5))[0] == "abacus"
    assert (await seen(face, made, way, "a sum", among=["poet", "oracle"], cost_weight=5))[0] == "poet"
    assert (await seen(face, made, way, "a sum", model="poet"))[0] == "poet"
    assert (await seen(face, face.make(router, models_of(face)), way, "a date"))[0] == "abacus"


@every_way
async def test_options_that_cannot_hold_are_refused(face: Face, way: str, router: UniRouter) -> None:
    """A misspelt one, with the nearest name; a model that is not there; a weight that is none."""
    made = face.make(router, models_of(face))
    with pytest.raises(InvalidInputError, match=r"no 'unirouter_cost_wieght'\. Did you mean 'unirouter_cost_weight'"):
        await face.ask(made, way, "a sum", cost_wieght=1)
    for options in ({"model": "nobody"}, {"among": ["poet", "nobody"]}):
        with pytest.raises(UnknownModelError, match="no model 'nobody'; the models are 'abacus', 'poet', 'oracle'"):
            await face.ask(made, way, "a sum", **options)
    for wrong in ("poet", [], 5, [["poet"]]):
        with pytest.raises(InvalidInputError, match="among should be a list of one or more names"):
            await face.ask(made, way, "a sum", among=wrong)
    with pytest.raises(InvalidInputError, match="cost_weight should be a number of at least 0, but is -1"):
        await face.ask(made, way, "a sum", cost_weight=-1)


@every_way
async def test_a_forced_model_is_not_replaced(face: Face, way: str, router: UniRouter) -> None:
    """Neither when it fails, nor by the default model; it is called even while it cools down."""
    models = models_of(face, poet=face.model("poet", error=LimitError()))
    made = face.make(router, models)
    for options in ({"model": "poet"}, {"among": ["poet"]}, {"model": "poet"}, {"model": "poet"}):
        with pytest.raises(LimitError):
            await face.ask(made, way, "a poem", **options)
    assert face.n_calls(models["poet"]) == 4
    assert face.n_calls(models["oracle"]) == 0


# ---------------------------------------------------------------- the registry


@every_face
async def test_health_is_shared_by_all_that_use_a_registry(face: Face, router: UniRouter) -> None:
    """Also by faces that are made for one call each; a dict of models has no health, so each face has its own."""
    for kind, n_calls in ((ModelRegistry, 5), (dict, 10)):
        poet = face.model("poet", error=LimitError())
        models: Any = kind(models_of(face, poet=poet))
        for _ in range(10):
            assert (await seen(face, face.make(router, models), face.ways[0], "a poem"))[0] == "oracle"
        assert face.n_calls(poet) == n_calls


@every_face
async def test_a_registry_serves_several_routers_and_changes_while_in_use(face: Face, router: UniRouter) -> None:
    """A model that is added takes part once it has a profile; one that is taken out no longer does."""
    registry = ModelRegistry(models_of(face))
    made = [face.make(router, registry) for _ in range(2)]
    registry.register("bargain", face.model("bargain"))
    assert [(await seen(face, each, face.ways[0], "a sum"))[0] for each in made] == ["abacus"] * 2
    router.register(router.profile("bargain", ["sum", "poem", "date"], [1, 1, 1], cost=0))
    assert [(await seen(face, each, face.ways[0], "a sum"))[0] for each in made] == ["bargain"] * 2
    del registry["bargain"]
    assert [(await seen(face, each, face.ways[0], "a sum"))[0] for each in made] == ["abacus"] * 2


@every_face
async def test_what_is_no_model_of_the_framework_is_refused(face: Face, router: UniRouter) -> None:
    """A registry serves both frameworks; the face refuses a model of the other one, when it is made or called."""

    class OtherFrameworks:
        """Looks like a model of both, and is one of neither."""

        async def ainvoke(self, *_: Any) -> None: ...

        async def achat(self, *_: Any) -> None: ...

    with pytest.raises(ValueError, match=r"The model 'poet' should be a .* not OtherFrameworks"):
        face.make(router, ModelRegistry(models_of(face, poet=OtherFrameworks())))
    registry = ModelRegistry(models_of(face))
    made = face.make(router, registry)
    registry["poet"] = OtherFrameworks()
    with pytest.raises(InvalidInputError, match=r"The model 'poet' should be a .* not OtherFrameworks"):
        await face.ask(made, face.ways[0], "a poem")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no fallback": ({"fallback": "refusal"}, "(?s)fallback.* 'refusals'"),
    "no cooldown": ({"cooldown": -1}, "cooldown, a number of seconds, should be a number of at least 0, but is -1"),
    "no default": ({"default": "bard"}, "default should be one of the models, .*, but is 'bard'"),
    **{
        f"no {name}": ({name: 0}, f"{name}, a number of seconds, should be a number above 0, but is 0")
        for name in ("embedding_timeout", "timeout", "deadline")
    },
    "no attempts": ({"max_attempts": 0}, "max_attempts should be a whole number of at least 1, but is 0"),
    "no check": ({"escalate": "contains"}, "'contains' needs a reference, which a call does not have; escalate by"),
    "no weight": ({"cost_weight": -1}, "cost_weight should be a number of at least 0, but is -1"),
}


@every_face
@pytest.mark.parametrize(("settings", "match"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_work_are_refused_at_once(
    face: Face, settings: dict[str, Any], match: str, router: UniRouter
) -> None:
    """When the face is made, with the same words."""
    with pytest.raises(ValueError, match=match):
        face.make(router, models_of(face), **settings)


@every_face
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda models: {}, "models is empty; give at least one model"),
        (lambda models: list(models.values()), "models should be a dict from names to models, or a ModelRegistry"),
        (lambda models: {**models, "bard": models["poet"]}, r"no profile of 'bard'; it has \['abacus', 'oracle', "),
    ],
)
def test_models_that_cannot_work_are_refused_at_once(
    face: Face, change: Callable[[dict[str, Any]], Any], match: str, router: UniRouter
) -> None:
    """As above."""
    with pytest.raises(ValueError, match=match):
        face.make(router, change(models_of(face)))
