"""Pages to look at: what is on them, what never is, and that they need nothing but themselves."""

import base64
import html
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from conftest import TOY_PROMPTS, made_up_outcomes, toy_embed, toy_router, toy_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from unirouter_integrations import InvalidInputError, MissingDependencyError, NoModelError, UniRouter
from unirouter_integrations.core._profiles import Floats, LLMProfile
from unirouter_integrations.evaluation import METHODS, Evaluation, Trial, _report, evaluate
from unirouter_integrations.evaluation._report import _shares_by_cost_weight, report, write_report

BAD_NAME = "<script>alert('$x$')</script> & co"


def own(trial: Trial) -> Floats:
    return METHODS["prompt-blind (ZeroRouter)"](trial)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(
        made_up_outcomes(120), methods=["unirouter", "K-NN", "oracle"], sizes=(10, 20), n_trials=2, n_jobs=1
    )


def pictures(page: str) -> list[str]:
    """The pictures of a page. In a comment each says what text it shows."""
    return [base64.b64decode(data).decode() for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)]


def shown(picture: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", picture)]


def test_an_evaluation_is_two_tables_and_four_pictures(evaluation: Evaluation, tmp_path: Path) -> None:
    """All means are in the table, the oracle apart from the others; each method has a line, each model a row."""
    write_report([evaluation], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "9 models, 120 prompts, 2 splits" in page
    for areas in evaluation.areas.values():
        assert all(f"<td>{area:.4f}</td>" in page for area in areas.mean(axis=0))
    found = evaluation.compare("unirouter", "K-NN", 20)
    assert f"<td>{found.difference:+.4f} {found.wins}:{found.losses}" in page
    assert page.index("<td>K-NN</td>") < page.index("may look at labels") < page.index("<td>oracle</td>")
    assert "Average of" not in page

    curves, areas_, choices, heat_map = map(shown, pictures(page))
    assert {"mean quality", "unirouter", "K-NN"} <= set(curves)
    assert {"area", "10", "20", "unirouter", "K-NN"} <= set(areas_)
    assert "oracle" not in curves
    assert {"share of prompts", "cost weight"} <= set(choices)
    assert set(evaluation.router.models) <= set(heat_map)
    assert any(text.startswith("0: ") for text in heat_map)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their pictures, which take most of the time."""
    monkeypatch.setattr(_report, "_picture", lambda figure, caption: "")


@pytest.mark.usefixtures("undrawn")
def test_several_sets_have_an_average(evaluation: Evaluation, tmp_path: Path) -> None:
    """The mean of two equal sets is that of one; other sizes are named as the reason why there is none."""
    write_report([evaluation, evaluation], tmp_path / "page.html")
    average = (tmp_path / "page.html").read_text(encoding="utf-8").split("<h2>")[1]
    assert average.startswith("Average of 2 sets")
    assert f"<td>{evaluation.areas['unirouter'][:, 1].mean():.4f}</td>" in average

    other = evaluate(made_up_outcomes(120), methods={"own": own}, sizes=(15,), n_trials=1, n_jobs=1)
    write_report([evaluation, other], tmp_path / "page.html")
    assert "There is no average: Only evaluations with the same" in (tmp_path / "page.html").read_text("utf-8")


def test_the_smallest_evaluation(tmp_path: Path) -> None:
    """One method of the caller's own, one split and one size: lines without bands, and no warning."""
    tiny = evaluate(made_up_outcomes(90), methods={BAD_NAME: own}, sizes=(10,), n_trials=1, n_jobs=1)
    write_report([tiny], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(pictures(page)) == 4
    assert "<script" not in page
    assert BAD_NAME in shown(pictures(page)[0])


def test_a_router_in_use(hard_router: UniRouter, tmp_path: Path) -> None:
    """Its models with error, cost and graded prompts, best first; its clusters with their best model."""
    router = hard_router
    router.cost_weight = 0.1
    report(router, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    names = [page.index(f"<tr><td>{name}</td>") for name in ("oracle", "abacus")]
    assert names == sorted(names)
    assert re.search(r"<td>oracle</td><td>0\.000</td><td>0\.\d+</td><td>10</td><td>60</td>", page)
    for cluster, described in enumerate(router.clusters.describe()):
        decision = router.route(next(p for p in TOY_PROMPTS if router.clusters.assign([p])[0] == cluster))
        words = ", ".join(described.keywords)
        assert f"<td>{cluster}</td><td>33.3%</td><td>{words}</td><td>{decision.model}</td>" in page
    assert "cost weight in use" in shown(pictures(page)[0])


def test_the_picture_of_choices_is_the_rule(blended: UniRouter) -> None:
    """At each cost weight the shares are those of routing the same prompts with it; all of the range is there."""
    vectors = np.random.default_rng(3).normal(size=(50, 16))
    phi = blended.clusters.memberships(vectors=vectors).phi
    weights, shares = _shares_by_cost_weight(blended.snapshot().pool, phi, np.full(50, 1 / 50))
    for weight, row in list(zip(weights.tolist(), shares, strict=True))[::40]:
        routed = [decision.model for decision in blended.route_many(vectors=vectors, cost_weight=weight)]
        np.testing.assert_allclose(row, [routed.count(model) / 50 for model in blended.models])
    ends = [blended.route_many(vectors=vectors, cost_weight=weight) for weight in (0, 1e9)]
    for row, decisions in zip(shares[[0, -1]], ends, strict=True):
        counts = [sum(decision.model == model for decision in decisions) / 50 for model in blended.models]
        np.testing.assert_allclose(row, counts, atol=0.05)


def test_prompts_weigh_the_choices(tmp_path: Path) -> None:
    """Only sums: the poet is never chosen. Without prompts every cluster counts."""
    router = toy_router("hard")
    report(router, tmp_path / "page.html", [prompt for prompt in TOY_PROMPTS if "sum" in prompt])
    assert "poet" not in shown(pictures((tmp_path / "page.html").read_text("utf-8"))[0])
    report(router, tmp_path / "page.html")
    assert "poet" in shown(pictures((tmp_path / "page.html").read_text("utf-8"))[0])


def test_seventy_models(tmp_path: Path) -> None:
    """Each has its row; in the picture of choices eight have a name. Long names keep both ends."""
    rng = np.random.default_rng(0)
    router = UniRouter.fit(TOY_PROMPTS, embedder=toy_embed, n_clusters=20)
    for number in range(70):
        name = f"provider-{number}/some-organisation/a-model-with-a-very-long-name-instruct-preview-{number}"
        profile = LLMProfile(name, np.full(20, 50.0), rng.uniform(0, 50 * 0.99**number, 20), cost=1.1**number)
        router.register(profile)
    report(router, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    choices, heat_map = map(shown, pictures(page))
    named = [text for text in choices if text.startswith("provider-")]
    assert len(named) == 8
    assert "others" in choices
    rows = [text for text in heat_map if text.startswith("provider-")]
    assert len(rows) == 70
    assert all(len(row) < 60 and re.fullmatch(r"provider-(\d+)/.*…-?.*preview-\1", row) for row in rows)


def test_a_page_needs_nothing_but_itself(evaluation: Evaluation, router: UniRouter, tmp_path: Path) -> None:
    """No script, no address, no font, no file: it may be read without network and sent by mail."""
    write_report([evaluation], tmp_path / "evaluation.html")
    report(router, tmp_path / "router.html")
    for page in (file.read_text(encoding="utf-8") for file in tmp_path.iterdir()):
        assert not re.search(r"https?://|<script|<link|<iframe|@import|url\(|javascript:", page)
        assert all(source.startswith("data:image/svg+xml;base64,") for source in re.findall(r'src="([^"]*)', page))
        assert page.count("<img") == len(pictures(page))
        for picture in pictures(page):
            for element in ET.fromstring(picture).iter():  # noqa: S314  # our own picture
                links = [value for name, value in element.attrib.items() if name.endswith("href")]
                assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_names_are_only_names(tmp_path: Path) -> None:
    """Markup, formulas, leading underscores and characters that no font has are shown, not obeyed."""
    router = UniRouter.fit([f"<b>bold</b> $x^2$ {i}" for i in range(30)], n_clusters=2)
    names = [BAD_NAME, "_private", "$\\frac{", "two lines", "模型 \N{GRINNING FACE}", '" onerror="x']
    for cost, name in enumerate(names):
        router.register(LLMProfile(name, np.full(2, 9.0), np.array([cost, 5.0 - cost]), cost=2.0**-cost))
    report(router, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&#x27;$x$&#x27;)&lt;/script&gt; &amp; co" in page
    assert not re.search(r'<script|<b>|" onerror', page)
    choices, heat_map = map(shown, pictures(page))
    assert {BAD_NAME, " _private", "$\\frac{", "two lines"} <= set(heat_map)
    assert " _private" in choices or "_private" not in "".join(choices)


@given(st.lists(st.text(min_size=1, max_size=80), min_size=3, max_size=12, unique=True))
@settings(max_examples=15)
def test_any_name_can_be_drawn(names: list[str]) -> None:
    """No warning, whatever the script, as names of ticks and of lines, and the picture is well-formed."""
    figure, axes = _report._figure(2, 2)
    labels = [_report._label(name) for name in names]
    axes.set_yticks(range(len(names)), labels=labels)
    for label in labels:
        axes.plot([0, 1], label=label)
    axes.legend(loc="upper left")
    (picture,) = pictures(_report._picture(figure, names[0]))
    ET.fromstring(picture)  # noqa: S314  # our own picture


@pytest.mark.slow
@given(st.lists(st.text(min_size=1, max_size=80).filter(str.isprintable), min_size=3, max_size=12, unique=True))
@settings(max_examples=10)
def test_any_name_can_be_in_a_report(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """The same of whole pages."""
    router = toy_router("hard")
    router.register(*(LLMProfile(name, np.full(3, 9.0), np.arange(3.0), cost=1) for name in names))
    path = tmp_path_factory.mktemp("names") / "page.html"
    report(router, path)
    for picture in pictures(path.read_text(encoding="utf-8")):
        ET.fromstring(picture)  # noqa: S314  # our own picture


def test_a_page_holds_no_prompt(tmp_path: Path) -> None:
    """Not those of the fit, of the profiles or of the report; not in the pictures either."""
    prompts = [f"{prompt} sesame{index}" for index, prompt in enumerate(TOY_PROMPTS)]
    router = UniRouter.fit(prompts, n_clusters=3)
    for name in ("one", "two"):
        router.register(router.profile(name, prompts, toy_scores("sum"), cost=1))
    report(router, tmp_path / "router.html", prompts)
    outcomes = made_up_outcomes(90)
    marked = tuple(f"{prompt} sesame{index}" for index, prompt in enumerate(outcomes.prompts))
    secret = type(outcomes)(marked, outcomes.models, outcomes.scores, outcomes.costs, "made up")
    write_report([evaluate(secret, methods=["unirouter"], sizes=(10,), n_trials=1, n_jobs=1)], tmp_path / "eval.html")
    for page in (file.read_text(encoding="utf-8") for file in tmp_path.iterdir()):
        assert "sesame" not in "".join([page, *pictures(page)])


@pytest.mark.usefixtures("undrawn")
def test_a_page_is_written_whole_or_not_at_all(
    router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is made if need be; a failed writing leaves the old page, and nothing beside it."""
    page = tmp_path / "new" / "page.html"
    report(router, page)
    before = page.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        msg = "disk full"
        raise OSError(msg)

    router.unregister("poet")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            report(router, page)
    assert page.read_bytes() == before
    assert list(page.parent.iterdir()) == [page]
    report(router, str(page))
    assert "poet" not in page.read_text(encoding="utf-8")


def test_settings_of_the_caller_stay(router: UniRouter, tmp_path: Path) -> None:
    """Reports neither change matplotlib's settings nor open figures."""
    before = dict(mpl.rcParams)
    report(router, tmp_path / "page.html")
    assert dict(mpl.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_pictures_need_matplotlib(
    evaluation: Evaluation, router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install, and no file is begun."""
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.font_manager"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'unirouter-integrations\[plots\]'"):
        write_report([evaluation], tmp_path / "page.html")
    with pytest.raises(MissingDependencyError, match=r"pip install 'unirouter-integrations\[plots\]'"):
        report(router, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_there_must_be_something_to_report(evaluation: Evaluation, router: UniRouter, tmp_path: Path) -> None:
    """No model, no prompt, no evaluation, or one in place of a list: the error says what to give."""
    path = tmp_path / "page.html"
    with pytest.raises(NoModelError, match=r"router\.register"):
        report(UniRouter(router.clusters), path)
    with pytest.raises(InvalidInputError, match="give at least one"):
        report(router, path, [])
    for wrong in ([], evaluation, [evaluation, "another"]):
        with pytest.raises(InvalidInputError, match=r"for instance \[evaluate\(outcomes\)\]"):
            write_report(wrong, path)  # type: ignore[arg-type]
    assert not path.exists()
