"""One saved router for both frameworks."""

from pathlib import Path

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import ToolMetadata
from llamaindex_fakes import fakes, terse, without_id

from unirouter_integrations import UniRouter
from unirouter_integrations.llamaindex import UniRouterLLM, UniRouterSelector
from unirouter_integrations.testing import ChatFake


def test_the_same_saved_router_serves_langchain_and_llamaindex(tmp_path: Path) -> None:
    """Profiled once, it decides alike in both, to the last digit."""
    pytest.importorskip("langchain_core")
    from unirouter_integrations.langchain import ChatUniRouter

    prompts = [f"What is {n} times {n}?" for n in range(40)] + [f"Write a poem about {n} birds." for n in range(40)]
    fitted = UniRouter.fit(prompts)
    for name, scores, cost in (("abacus", [1] * 40 + [0] * 40, 1), ("poet", [0] * 40 + [1] * 40, 2)):
        fitted.register(fitted.profile(name, prompts, scores, cost=cost))
    fitted.save(tmp_path / "router")

    router = UniRouter.load(tmp_path / "router")
    chat = ChatUniRouter(router=router, models={name: ChatFake(model=name) for name in router.models})
    models = {name: model for name, model in fakes().items() if name in router.models}
    llm = UniRouterLLM(router=UniRouter.load(tmp_path / "router"), models=models)
    selector = UniRouterSelector(router=router)
    choices = [ToolMetadata("answers", name) for name in router.models]
    for question, name in {"What is 7 times 8?": "abacus", "Write a poem about an owl.": "poet"}.items():
        noted = llm.chat([ChatMessage(question)]).additional_kwargs["unirouter"]
        assert noted["model"] == name
        assert without_id(noted) == without_id(chat.invoke(question).response_metadata["unirouter"])
        assert choices[selector.select(choices, question).ind].name == name

    # It joins one face, and the other has its model as well.
    profile = router.profile("oracle", prompts, [1] * 80, cost=0.1)
    chat.register("oracle", ChatFake(model="oracle"), profile)
    both = UniRouterLLM(router=router, models=terse())
    question = "Write a poem about an owl."
    assert both.complete(question).text == "oracle: yes"
    assert chat.invoke(question).text == f"oracle: {question}"
