"""Data sets on a real Ray of two workers, in a process of its own, since Ray warns and lingers."""

import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOY_PROMPTS, toy_scores

from unirouter_integrations import UniRouter

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")

TESTS = Path(__file__).parents[1]
START = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, ray
from conftest import TOY_PROMPTS, toy_router, toy_scores
from unirouter_integrations.ray import profile_dataset, route_dataset
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[1]}})
ray.data.DataContext.get_current().enable_progress_bars = False
def dataset(n):
    rows = [{"id": i, "prompt": TOY_PROMPTS[i % 60], "score": toy_scores("sum")[i % 60], "paid": float(i % 3)}
            for i in range(n)]
    return ray.data.from_items(rows, override_num_blocks=8)
def hand_over(found):
    with open(f"{sys.argv[2]}/found.json", "w") as file:
        json.dump(found, file)
router = toy_router("soft")
"""


def on_ray(script: str, folder: Path, *arguments: str) -> Any:
    """What a script on a Ray of two workers hands over."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", START + textwrap.dedent(script), str(TESTS), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of one Ray for all tests, since starting it takes seconds."""
    return on_ray(
        """
        from ray.data import ActorPoolStrategy
        routed = route_dataset(dataset(600), router, cost_weight=0.05)
        rows = sorted(routed.take_all(), key=lambda row: row["id"])
        kept = route_dataset(dataset(60), router, among=["poet"], compute=ActorPoolStrategy(size=2), batch_size=10)
        flat = profile_dataset(dataset(600), router, "m", cost=2)
        paid = profile_dataset(dataset(600), router, "m", cost="paid")
        errors = []
        for wrong in (lambda: route_dataset(dataset(1), router, "question"),
                      lambda: profile_dataset(dataset(3).filter(lambda row: row["id"] > 9), router, "m", cost=1)):
            try:
                wrong()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        hand_over({
            "columns": routed.columns(),
            "rows": [[row["id"], row["unirouter_model"], row["unirouter_expected_error"]] for row in rows],
            "among": sorted({row["unirouter_model"] for row in kept.take_all()}),
            "flat": [flat.counts.tolist(), flat.losses.tolist(), flat.cost, flat.clusters],
            "paid": [paid.counts.tolist(), paid.losses.tolist(), paid.cost.tolist()],
            "errors": errors,
        })
        """,
        tmp_path_factory.mktemp("ray"),
    )


def test_a_data_set_is_routed_as_its_prompts_are(seen: Any, router: UniRouter) -> None:
    """Row by row, whatever blocks and workers it was cut into; with the columns that were there."""
    decisions = router.route_many([TOY_PROMPTS[i % 60] for i in range(600)], cost_weight=0.05)
    assert [row[0] for row in seen["rows"]] == list(range(600))
    assert [row[1] for row in seen["rows"]] == [decision.model for decision in decisions]
    np.testing.assert_allclose(
        [row[2] for row in seen["rows"]], [decision.expected_error for decision in decisions], atol=1e-6
    )
    assert {"id", "prompt", "unirouter_model", "unirouter_cluster", "unirouter_expected_cost"} <= set(seen["columns"])


def test_a_data_set_is_routed_among_some_and_in_workers_that_stay(seen: Any) -> None:
    """Other arguments of map_batches are passed on."""
    assert seen["among"] == ["poet"]


def test_a_model_is_profiled_by_a_data_set_as_by_its_rows(seen: Any, router: UniRouter) -> None:
    """Counts add, so the parts of the workers are the whole."""
    prompts, scores = TOY_PROMPTS * 10, toy_scores("sum") * 10
    for key, cost in (("flat", 2), ("paid", [float(i % 3) for i in range(600)])):
        expected = router.profile("m", prompts, scores, cost=cost)
        np.testing.assert_allclose(seen[key][0], expected.counts, rtol=1e-5)
        np.testing.assert_allclose(seen[key][1], expected.losses, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(seen[key][2], expected.cost, rtol=1e-5, atol=1e-5)
    assert seen["flat"][3] == router.clusters.fingerprint


def test_missing_columns_and_scores_are_errors(seen: Any) -> None:
    """A column that is not there, and outcomes of which none is graded."""
    assert seen["errors"][0].startswith("InvalidInputError: There is no column 'question' in the data set; its columns")
    assert seen["errors"][1].startswith("InvalidInputError: None of the rows has a score of 'm' in the column 'score'")


JOB = """
from ray.data.checkpoint import CheckpointConfig
folder, fails = sys.argv[2], len(sys.argv) > 3
context = ray.data.DataContext.get_current()
context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=f"{folder}/done")
class Marked:
    def __call__(self, batch):
        with open(f"{folder}/log", "a") as log:
            log.write("".join(f"{i}\\n" for i in batch["id"]))
        if fails and len(open(f"{folder}/log").read().split()) > 500:
            raise RuntimeError("the power is gone")
        return batch
blocks = ray.data.read_parquet(f"{folder}/in").repartition(target_num_rows_per_block=50)
routed = route_dataset(blocks, router, batch_size=50).map_batches(Marked(), batch_size=50)
try:
    routed.write_parquet(f"{folder}/out")
except Exception:
    pass
context.checkpoint_config = None
hand_over(sorted(row["id"] for row in ray.data.read_parquet(f"{folder}/out").take_all()))
"""


@pytest.mark.slow
def test_a_job_that_is_started_again_goes_on_after_what_it_has_written(tmp_path: Path) -> None:
    """By Ray Data's own checkpoints: written blocks are not worked on again, and each row is written once."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    (tmp_path / "in").mkdir()
    for part in range(20):
        ids = list(range(50 * part, 50 * part + 50))
        parquet.write_table(
            table({"id": ids, "prompt": [TOY_PROMPTS[i % 60] for i in ids]}), tmp_path / "in" / f"{part:02}.parquet"
        )
    written = on_ray(JOB, tmp_path, "fails")
    assert 0 < len(written) < 1000
    (tmp_path / "log").unlink()
    assert on_ray(JOB, tmp_path) == list(range(1000))
    again = {int(line) for line in (tmp_path / "log").read_text().split()}
    assert again == set(range(1000)) - set(written)
