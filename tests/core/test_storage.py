"""Routers on disk: what is written, what is refused, and that no save is half a save."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, blended_vectors, toy_embed, toy_scores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from unirouter_integrations import EmbeddingError, StorageError, UniRouter, UniRouterError
from unirouter_integrations._storage import read_folder, write_folder


@pytest.fixture(scope="module")
def fitted() -> UniRouter:
    """A router with the local embedder, a prior, and costs of both kinds; fitted once, and changed by no test."""
    scores = {"a": toy_scores("sum"), "b": toy_scores("poem")}
    router = UniRouter.fit(TOY_PROMPTS, n_clusters=3, scores=scores)
    router.register(router.profile("a", TOY_PROMPTS, scores["a"], cost=1, metadata={"run": "2026-11"}))
    router.register(router.profile("b", TOY_PROMPTS, scores["b"], cost=[len(p) for p in TOY_PROMPTS]))
    router.cost_weight = 0.03
    return router


@pytest.fixture
def local_router(fitted: UniRouter) -> UniRouter:
    """A copy of that router."""
    return copy.deepcopy(fitted)


@pytest.fixture(scope="module")
def saved_once(fitted: UniRouter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that router, changed by no test."""
    folder = tmp_path_factory.mktemp("router")
    fitted.save(folder)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(saved_once, tmp_path / "saved"))


def test_a_router_comes_back_as_it_was(local_router: UniRouter, tmp_path: Path) -> None:
    """Decisions with their rankings, settings, profiles and descriptions; no embedder has to be given."""
    local_router.save(tmp_path / "deep" / "router")
    loaded = UniRouter.load(str(tmp_path / "deep" / "router"))
    for ours, theirs in zip(local_router.route_many(TOY_PROMPTS), loaded.route_many(TOY_PROMPTS), strict=True):
        assert ours == theirs
        assert ours.ranking == theirs.ranking
    assert repr(loaded) == repr(local_router)
    assert loaded.profiles["a"].metadata == {"run": "2026-11"}
    assert loaded.clusters.describe() == local_router.clusters.describe()
    for prompts in (["a sum"], ["something else"]):
        before, after = local_router.clusters.memberships(prompts), loaded.clusters.memberships(prompts)
        np.testing.assert_array_equal(before.phi, after.phi)
        np.testing.assert_array_equal(before.familiarity, after.familiarity)
    assert loaded.calibrate(TOY_PROMPTS, budget=10) == local_router.calibrate(TOY_PROMPTS, budget=10)


@pytest.fixture
def learned_router() -> UniRouter:
    """A router of vectors alone, whose gate was learned from outcomes."""
    vectors = blended_vectors(400, 0)
    scores = {str(axis): (vectors[:, axis] <= 0).astype(float) for axis in range(4)}
    fit = {"embedder": None, "vectors": vectors, "n_clusters": 6}
    router = UniRouter.fit([""] * 400, scores=scores, **fit)  # type: ignore[arg-type]
    assert router.clusters.fingerprint != UniRouter.fit([""] * 400, **fit).clusters.fingerprint  # type: ignore[arg-type]
    for name, known in scores.items():
        router.register(router.profile(name, vectors=vectors, scores=known, cost=1 + np.abs(vectors[:, int(name) + 4])))
    router.cost_weight = 0.01
    return router


def test_a_learned_gate_comes_back_bit_for_bit(learned_router: UniRouter, tmp_path: Path) -> None:
    """So do memberships and decisions, for prompts like those of the fit and for others."""
    learned_router.save(tmp_path)
    loaded = UniRouter.load(tmp_path)
    ours, theirs = learned_router.clusters, loaded.clusters
    assert ours.gate is not None
    assert theirs.gate is not None
    np.testing.assert_array_equal(ours.gate.weights, theirs.gate.weights)
    np.testing.assert_array_equal(ours.gate.bias, theirs.gate.bias)
    assert ours.gate.weights.dtype == theirs.gate.weights.dtype
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.familiar_radius, ours.familiar_falloff) == (theirs.familiar_radius, theirs.familiar_falloff)
    np.testing.assert_array_equal(ours.shares, theirs.shares)
    vectors = np.vstack([blended_vectors(200, 1), np.random.default_rng(0).normal(size=(50, 16)), np.zeros((1, 16))])
    for a, b in zip(learned_router.route_many(vectors=vectors), loaded.route_many(vectors=vectors), strict=True):
        assert a == b
        assert a.ranking == b.ranking


def test_a_hard_router_comes_back_hard(hard_router: UniRouter, tmp_path: Path) -> None:
    """Without a gate, and with decisions that are the same to the last bit."""
    hard_router.save(tmp_path)
    loaded = UniRouter.load(tmp_path, embedder=toy_embed)
    assert loaded.clusters.gate is None
    assert loaded.clusters.fingerprint == hard_router.clusters.fingerprint
    assert loaded.route_many(TOY_PROMPTS) == hard_router.route_many(TOY_PROMPTS)
    assert not any("gate" in name for name in load_file(tmp_path / "router.safetensors"))


def test_an_empty_router_comes_back_too(tmp_path: Path) -> None:
    """No models yet, vectors only."""
    UniRouter.fit(TOY_PROMPTS, embedder=None, vectors=toy_embed(TOY_PROMPTS), n_clusters=3).save(tmp_path)
    loaded = UniRouter.load(tmp_path)
    assert loaded.models == ()
    assert loaded.clusters.embedder is None
    with pytest.raises(EmbeddingError, match="load it without embedder="):
        UniRouter.load(tmp_path, embedder=toy_embed)


def test_the_files_are_json_and_safetensors_and_hold_no_prompt(local_router: UniRouter, tmp_path: Path) -> None:
    """Two files, readable by anybody; no prompt in either."""
    local_router.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["router.json", "router.safetensors"]
    document = json.loads((tmp_path / "router.json").read_text())
    assert document["format_version"] == 1
    assert load_file(tmp_path / "router.safetensors")["counts"].shape == (2, 3)
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(prompt.encode() in everything for prompt in TOY_PROMPTS)


def test_saving_again_replaces_and_leaves_other_files_alone(local_router: UniRouter, tmp_path: Path) -> None:
    """The last save counts."""
    (tmp_path / "README.txt").write_text("mine")
    local_router.save(tmp_path)
    local_router.unregister("a")
    local_router.save(tmp_path)
    assert UniRouter.load(tmp_path).models == ("b",)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.txt", "router.json", "router.safetensors"]


def test_an_embedder_that_is_not_saved_must_be_given(router: UniRouter, tmp_path: Path) -> None:
    """Its name is in the message, and the right one is recognised by its vectors."""
    router.save(tmp_path)
    with pytest.raises(EmbeddingError, match=r"fitted with the embedder 'callable:toy_embed'.*embedder=\.\.\."):
        UniRouter.load(tmp_path)
    loaded = UniRouter.load(tmp_path, embedder=lambda texts: toy_embed(texts) * 3)  # the same directions
    assert loaded.route("a poem").model == "poet"


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        (lambda texts: toy_embed(texts)[:, ::-1], "is not the one this router was fitted with.*off by"),
        (lambda texts: toy_embed(texts)[:, :3], "dimension 3"),
        (lambda texts: np.zeros((len(texts), 4)), "off by 1.000"),
    ],
)
def test_another_embedder_is_refused(router: UniRouter, tmp_path: Path, embedder: Any, message: str) -> None:
    """It would route, and quietly wrong."""
    router.save(tmp_path)
    with pytest.raises(EmbeddingError, match=message):
        UniRouter.load(tmp_path, embedder=embedder)


def test_an_embedder_given_to_a_local_router_is_refused(local_router: UniRouter, tmp_path: Path) -> None:
    """The local embedder is saved with the router; another one cannot be meant."""
    local_router.save(tmp_path)
    assert UniRouter.load(tmp_path, embedder="local").route("a sum") == local_router.route("a sum")
    with pytest.raises(EmbeddingError, match="load it without embedder="):
        UniRouter.load(tmp_path, embedder=toy_embed)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / "router.json").read_text())
        change(document)
        (folder / "router.json").write_text(json.dumps(document))

    return apply


def infinite_radius(folder: Path) -> None:
    """A number that JSON may hold and no float can."""
    file = folder / "router.json"
    document = json.loads(file.read_text())
    document["clusters"]["familiar_radius"] = "HUGE"
    file.write_text(json.dumps(document).replace('"HUGE"', "1e999"))


@pytest.mark.parametrize("key", ["weights", "bias"])
def test_half_a_gate_is_refused(saved: Path, key: str) -> None:
    """It needs both its arrays."""
    state = read_folder(saved, "router")
    del state.arrays[f"clusters.gate.{key}"]
    write_folder(saved, "router", state)
    with pytest.raises(StorageError, match=f"The array clusters.gate.{key} is missing"):
        UniRouter.load(saved)


@pytest.mark.parametrize(
    "damage",
    [
        {"familiar_radius": 0.1, "familiar_falloff": 1e-320},
        {"familiar_radius": 1e-50, "familiar_falloff": 1e-50},
        {"familiar_radius": 1e300, "familiar_falloff": 1e300},
        {"min_known_share": 1e-320},
        {"min_known_share": 1e308},
        {"min_known_share": -1.0},
    ],
)
def test_scales_no_fit_gives_do_not_spoil_a_decision(saved: Path, damage: dict[str, object]) -> None:
    """They are refused, or familiarity is still a number from 0 to 1; no warning, no NaN."""
    edit(lambda d: d["clusters"].update(damage))(saved)
    with contextlib.suppress(StorageError):
        for decision in UniRouter.load(saved).route_many([*TOY_PROMPTS, "something else"]):
            assert 0 <= decision.familiarity <= 1
            assert 0 <= decision.expected_error <= 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "router.json").unlink(), "no saved router in"),
        (lambda folder: (folder / "router.safetensors").unlink(), "missing, damaged or not the one"),
        (lambda folder: (folder / "router.safetensors").write_bytes(b"x" * 99), "missing, damaged or not the one"),
        (lambda folder: (folder / "router.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "router.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
        (lambda folder: (folder / "router.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda folder: (folder / "router.json").write_text("[]"), "should hold a JSON object"),
        (lambda folder: (folder / "router.json").write_text('{"a": NaN}'), "holds NaN"),
        (edit(lambda d: d.update(format="other")), "not a saved router"),
        (edit(lambda d: d.update(format_version=2)), "format version 2.*reads 1. Upgrade"),
        (edit(lambda d: d.update(format_version=True)), "format_version should be int"),
        (edit(lambda d: d.update(estimator="median")), "estimator should be one of .* but is 'median'"),
        (edit(lambda d: d.update(cost_weight=-1)), "cost_weight should be a number of at least 0"),
        (edit(lambda d: d.update(cost_weight="1")), "cost_weight should be float, but str"),
        (edit(lambda d: d.update(cost_weight=10**400)), "cost_weight should be float, but int"),
        (edit(lambda d: d.pop("clusters")), "clusters should be dict, but nothing"),
        (edit(lambda d: d["clusters"].update(familiar_radius=0.0)), "of fitted clusters. The file"),
        (edit(lambda d: d["clusters"].update(familiar_falloff=-1.0)), "of fitted clusters. The file"),
        (edit(lambda d: d["clusters"].update(familiar_falloff=0.0)), "of fitted clusters. The file"),
        (edit(lambda d: d["clusters"].update(familiar_radius=[1.0, 1.0])), "familiar_radius should be float, but list"),
        (edit(lambda d: d["clusters"].update(familiar_radius="1")), "familiar_radius should be float, but str"),
        (edit(lambda d: d["clusters"].update(familiar_falloff=True)), "familiar_falloff should be float, but bool"),
        (edit(lambda d: d["clusters"].update(familiar_falloff=None)), "familiar_falloff should be float, but NoneType"),
        (edit(lambda d: d["clusters"].update(familiar_falloff=10**400)), "familiar_falloff should be float, but int"),
        (edit(lambda d: d["clusters"].update(familiar_radius=1e9)), "of fitted clusters. The file"),
        (edit(lambda d: d["clusters"].pop("familiar_radius")), "familiar_radius should be float, but nothing"),
        (edit(lambda d: d["clusters"].update(min_known_share="1")), "min_known_share should be float, but str"),
        (edit(lambda d: d["clusters"].pop("min_known_share")), "min_known_share should be float, but nothing"),
        (infinite_radius, "of fitted clusters. The file"),
        (edit(lambda d: d["clusters"].update(gate=None)), "gate should be dict, but NoneType"),
        (edit(lambda d: d["clusters"].update(gate=[])), "gate should be dict, but list"),
        (edit(lambda d: d["clusters"].pop("gate")), "measured on 3 clusters"),
        (edit(lambda d: d["clusters"]["clusters"].pop()), "of fitted clusters. The file"),
        (edit(lambda d: d["clusters"]["embedder"]["terms"].pop()), "projection has shape"),
        (edit(lambda d: d["clusters"]["embedder"].update(terms=[1])), r"terms\[0\] should be str"),
        (edit(lambda d: d["profiles"].pop()), "counts has shape"),
        (edit(lambda d: d["profiles"].append(3)), r"profiles\[2\] should be dict"),
        (edit(lambda d: d["profiles"][0].update(name="b")), "'b' is saved twice"),
        (edit(lambda d: d["profiles"][0].update(cost=-1)), "finite and not negative"),
        (edit(lambda d: d["profiles"][0].update(clusters="other")), "measured on 3 clusters"),
        (edit(lambda d: d["profiles"][0].update(metadata=[])), "metadata should be dict"),
    ],
)
def test_a_damaged_folder_is_refused(saved: Path, damage: Any, message: str) -> None:
    """Every fault is one of our errors, which says where it is."""
    damage(saved)
    with pytest.raises(StorageError, match=message):
        UniRouter.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("losses", [[np.nan] * 3] * 2, "not finite or not in"),
        ("counts", [[-1.0] * 3] * 2, "not in"),
        ("losses", [[1e9] * 3] * 2, "a loss lies between 0 and 1 per prompt"),
        ("counts", np.ones((2, 3), np.int64), "not of floating-point numbers"),
        ("clusters.probe", [0.0] * 3, "probe has shape"),
        ("clusters.centroids", np.zeros((0, 4)), "shares has shape|of fitted clusters"),
        ("prior.covariance", np.zeros((3, 2)), "covariance has shape"),
        ("prior.covariance", np.ones((3, 3)) - 2 * np.eye(3), "negative eigenvalues"),
        ("clusters.centroids", np.full((3, 3), 1e300), "not in"),
        ("clusters.gate.weights", np.zeros((3, 2)), "gate.weights has shape"),
        ("clusters.gate.weights", np.zeros(3), "gate.weights has shape"),
        ("clusters.gate.bias", np.zeros(4), "gate.bias has shape"),
        ("clusters.gate.bias", np.array([0.0, np.nan, 0.0]), "gate.bias holds numbers that are not finite"),
        ("clusters.gate.bias", np.array([0.0, np.inf, 0.0]), "gate.bias holds numbers that are not finite"),
        ("clusters.gate.bias", np.array([0.0, 1e300, 0.0]), "not in"),
        ("clusters.gate.bias", np.array([0.0, -1e7, 0.0]), "not in"),
        ("clusters.gate.bias", np.zeros(3, np.int64), "not of floating-point numbers"),
        ("clusters.gate.bias", np.zeros(3), "measured on 3 clusters"),
        ("clusters.shares", np.ones(3), "shares"),
        ("clusters.shares", np.zeros(3), "shares"),
    ],
)
def test_damaged_arrays_are_refused(saved: Path, name: str, value: Any, message: str) -> None:
    """Even where the files belong together, each array is checked."""
    state = read_folder(saved, "router")
    state.arrays[name] = np.asarray(value)
    write_folder(saved, "router", state)
    with pytest.raises(StorageError, match=message):
        UniRouter.load(saved)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8), st.sampled_from(["router.json", "router.safetensors"]))
def test_any_corruption_is_one_of_our_errors(
    saved_once: Path, saved: Path, position: int, noise: bytes, name: str
) -> None:
    """Bytes overwritten anywhere: either the load still works, or it fails with one of our errors."""
    shutil.copytree(saved_once, saved, dirs_exist_ok=True)  # without the damage of the example before
    data = bytearray((saved / name).read_bytes())
    start = position % len(data)
    data[start : start + len(noise)] = noise
    (saved / name).write_bytes(data)
    with contextlib.suppress(UniRouterError):
        UniRouter.load(saved).route("a sum")


def test_a_path_that_is_a_file_is_refused(local_router: UniRouter, tmp_path: Path) -> None:
    """It is not overwritten."""
    file = tmp_path / "router"
    file.write_text("mine")
    with pytest.raises(StorageError, match="is a file; give the path of a folder"):
        local_router.save(file)
    assert file.read_text() == "mine"


@contextlib.contextmanager
def dying_at(step: int) -> Iterator[None]:
    """Within it, a save dies at its first, second, ... step that touches the disk."""
    steps = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return run

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for owner, name in ((os, "fsync"), (Path, "replace")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        yield


@pytest.mark.parametrize("fatal", range(1, 6))
def test_a_save_that_dies_leaves_a_whole_router(local_router: UniRouter, tmp_path: Path, fatal: int) -> None:
    """Whichever step is its last, the folder holds the old router or the new one, and can be saved to again."""
    local_router.save(tmp_path)
    local_router.unregister("a")
    with dying_at(fatal):
        local_router.save(tmp_path)
    assert UniRouter.load(tmp_path).models == (("a", "b") if fatal <= 4 else ("b",))
    local_router.save(tmp_path)
    assert UniRouter.load(tmp_path).models == ("b",)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["router.json", "router.safetensors"]


@pytest.mark.parametrize("fatal", range(1, 6))
def test_two_saves_that_die_leave_a_whole_router(local_router: UniRouter, tmp_path: Path, fatal: int) -> None:
    """The first dies with its arrays not yet in their place; the second must not overwrite them."""
    local_router.save(tmp_path)
    local_router.unregister("a")
    with dying_at(5):
        local_router.save(tmp_path)
    local_router.unregister("b")
    with dying_at(fatal):
        local_router.save(tmp_path)
    assert UniRouter.load(tmp_path).models == ("b",)


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_router(local_router: UniRouter, tmp_path: Path) -> None:
    """A process that saves without end is killed at random moments: the folder always loads."""
    local_router.save(tmp_path)
    script = textwrap.dedent(
        """
        import sys
        from unirouter_integrations import UniRouter
        router = UniRouter.load(sys.argv[1])
        profile = router.profiles["a"]
        print("ready", flush=True)
        while True:
            router.unregister("a")
            router.save(sys.argv[1])
            router.register(profile)
            router.save(sys.argv[1])
        """
    )
    for round_ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for _ in range(10):
            assert UniRouter.load(tmp_path).models in {("a", "b"), ("b",)}
        time.sleep(0.003 * round_)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        loaded = UniRouter.load(tmp_path)
        assert loaded.models in {("a", "b"), ("b",)}
        local_router.save(tmp_path)
