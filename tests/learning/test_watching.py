"""Routers from anywhere, and routers that are replaced while they are in use."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_embed, toy_router, toy_scores

from unirouter_integrations import EmbeddingError, InvalidInputError, StorageError, UniRouter
from unirouter_integrations.watch import Watch

NEVER = 1e6  # seconds: in most of these tests only check() checks


def other_router(n_clusters: int = 2, *names: str) -> UniRouter:
    """A router over other clusters, with other models."""
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=n_clusters, estimator="mean")
    for name in names or ("newcomer",):
        router.register(router.profile(name, TOY_PROMPTS, toy_scores(), cost=1))
    router.cost_weight = 0.5
    return router


def upload(folder: Path, url: str) -> None:
    import fsspec

    for name in ("router.safetensors", "router.json"):
        with fsspec.open(f"{url}/{name}", "wb") as file:
            file.write((folder / name).read_bytes())


@pytest.fixture(params=["folder", "file://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Where a router can be put and loaded from: a function that puts it there, and the path."""
    if request.param == "folder":
        path = str(tmp_path / "router")
        yield lambda router: router.save(path), path
        return
    fsspec = pytest.importorskip("fsspec")
    url = f"file://{tmp_path / 'there'}" if request.param == "file://" else f"memory://{tmp_path.name}/router"
    (tmp_path / "there").mkdir()

    def put(router: UniRouter) -> None:
        router.save(tmp_path / "here")
        upload(tmp_path / "here", url)

    yield put, url
    if request.param == "memory://":
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_a_router_is_loaded_from_a_folder_or_a_url(place: Any) -> None:
    """It is the same router; one that is not there is said to be missing."""
    put, path = place
    with pytest.raises(StorageError, match=r"no saved router in .*router.json could not be read"):
        UniRouter.load(path, embedder=toy_embed)
    put(toy_router("soft"))
    loaded = UniRouter.load(path, embedder=toy_embed)
    assert loaded.route_many(TOY_PROMPTS) == toy_router("soft").route_many(TOY_PROMPTS)


def test_a_new_version_is_taken(place: Any) -> None:
    """With its clusters, models and cost weight; the same version again is not."""
    put, path = place
    put(toy_router("hard"))
    router = UniRouter.load(path, embedder=toy_embed)
    with Watch(router, path, every=NEVER) as watch:
        assert watch.check() is False
        put(other_router())
        assert watch.check() is True
        assert watch.check() is False
    assert router.models == ("newcomer",)
    assert (len(router.clusters), router.cost_weight) == (2, 0.5)
    assert router.route("a sum").model == "newcomer"
    put(other_router(3))
    assert len(router.clusters) == 2


def test_a_new_version_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, within the interval."""
    toy_router("hard").save(tmp_path)
    router = UniRouter.load(tmp_path, embedder=toy_embed)
    replaced = threading.Event()
    replace_with = router.replace_with

    def replace(other: UniRouter) -> None:
        replace_with(other)
        replaced.set()

    monkeypatch.setattr(router, "replace_with", replace)
    with Watch(router, tmp_path, every=0.01):
        other_router().save(tmp_path)
        assert replaced.wait(30)
    assert router.models == ("newcomer",)


def test_calls_go_on_while_routers_are_replaced() -> None:
    """Each decision is the one or the other router's, whole: with its models and its number of clusters."""
    versions = [other_router(2, "a"), other_router(5, "b")]
    router = other_router(2, "a")
    done, wrong = threading.Event(), list[object]()

    def call() -> None:
        while not done.is_set():
            try:
                decision = router.route("a poem number iii")
                if (decision.model, len(decision.memberships)) not in {("a", 2), ("b", 5)}:
                    wrong.append(decision)
                snapshot = router.snapshot()
                snapshot.among(snapshot.models).route_many(TOY_PROMPTS)
            except Exception as error:  # noqa: BLE001
                wrong.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        for version in versions:
            router.replace_with(version)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_folder_that_cannot_be_read_leaves_the_router_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and tried again."""
    toy_router("hard").save(tmp_path)
    router = UniRouter.load(tmp_path, embedder=toy_embed)
    with Watch(router, tmp_path, every=NEVER) as watch:
        (tmp_path / "router.json").write_text("half a fi")
        caplog.set_level(logging.WARNING, "unirouter_integrations")
        for _ in range(3):
            watch._try_to_check()
        with pytest.raises(StorageError, match="not valid JSON"):
            watch.check()
        assert router.route("a sum").model == "abacus"
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "the one in use stays" in caplog.text
        other_router().save(tmp_path)
        assert watch.check() is True


def test_a_router_of_another_embedder_is_not_taken(tmp_path: Path) -> None:
    """The embedder in use has to be that of the new router."""
    toy_router("hard").save(tmp_path)
    router = UniRouter.load(tmp_path, embedder=toy_embed)
    strange = UniRouter.fit(TOY_PROMPTS, embedder=lambda texts: toy_embed(texts)[:, ::-1] + 1, n_clusters=2)
    strange.save(tmp_path)
    with Watch(router, tmp_path, every=NEVER) as watch, pytest.raises(EmbeddingError, match="not the one"):
        watch.check()
    assert len(router.clusters) == 3


def test_a_router_with_its_local_embedder_is_taken_whole(tmp_path: Path) -> None:
    """The embedder is fitted anew and saved with it."""
    prompts = [f"{kind} {n} apples" for n in range(20) for kind in ("add", "rhyme about")]
    for size, name in ((2, "first"), (3, "second")):
        saved = UniRouter.fit(prompts[: 10 * size], n_clusters=size)
        saved.register(saved.profile(name, prompts, np.ones(40), cost=1))
        saved.save(tmp_path / name)
    router = UniRouter.load(tmp_path / "first")
    with Watch(router, tmp_path / "second", every=NEVER) as watch:
        assert watch.check()
    assert router.route("add 3 apples") == UniRouter.load(tmp_path / "second").route("add 3 apples")


def test_learning_goes_on_with_the_new_router(tmp_path: Path) -> None:
    """Feedback for a decision of the old clusters is not counted; that of the new ones is."""
    router, new = toy_router("hard"), other_router()
    before = router.route("a sum")
    with router.learn(every=NEVER) as learning:
        router.observe(before, 0)
        router.replace_with(new)
        assert router.observe(before, 0) is False
        assert router.observe(router.route("a sum"), 0) is True
        learning.sync()
    assert router.profiles["newcomer"].losses.sum() == pytest.approx(1)


def test_saving_to_a_url_and_unknown_kinds_of_url_are_refused(tmp_path: Path) -> None:
    """With what to do in their place."""
    with pytest.raises(StorageError, match=r"upload it, router\.json last"):
        toy_router("hard").save("memory://router")
    pytest.importorskip("fsspec")
    with pytest.raises(StorageError, match="no URL that fsspec can use"):
        UniRouter.load("nothing-like-it://router")


def test_a_url_without_fsspec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of this machine need nothing."""
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"unirouter-integrations\[fsspec\]"):
        UniRouter.load("memory://router")


def test_calls_that_were_begun_survive_any_number_of_replacements() -> None:
    """A snapshot that is three versions old still decides, over the clusters and among the models of its time."""
    router = toy_router("soft")
    snapshot, vector = router.snapshot(), router.embed(["poem number i"])
    for size in (2, 4, 3):
        router.replace_with(other_router(size))
    assert snapshot.route_many(vectors=vector)[0].model == "poet"
    assert snapshot.route("poem number i") == toy_router("soft").route("poem number i")
    assert router.route("poem number i").model == "newcomer"


@pytest.mark.parametrize("every", [0, -1, "5", None])
def test_how_often_to_check_is_a_time(every: Any, tmp_path: Path) -> None:
    """Anything else would check all the time, or never."""
    with pytest.raises(InvalidInputError, match="every, a number of seconds, should be a number above 0"):
        Watch(toy_router("soft"), tmp_path, every=every)
