"""A process that is killed while it saves: at every step there is, and at none of them is the old router lost."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
    import os, shutil, signal, sys
    from pathlib import Path
    from unirouter_integrations import UniRouter

    folder, clean = Path(sys.argv[1]), sys.argv[2] == "clean"
    prompts = ["add two numbers", "add three numbers", "write a poem", "write a song"]
    router = UniRouter.fit(prompts, n_clusters=2)
    old, new = (router.profile(name, prompts, [0, 0, 1, 1], cost=1) for name in ("old", "new"))
    router.register(old)
    router.save(folder)
    loaded = UniRouter.load(folder)  # late imports happen now
    router.register(new)

    def save_and_die(step):
        steps = 0
        def watch(event, arguments):
            nonlocal steps
            if event == "open" or event.startswith("os."):
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        router.save(folder)
        os._exit(0)

    found = []
    for step in range(1, 100):
        if clean:
            shutil.rmtree(folder)
        loaded.save(folder)
        child = os.fork()
        if not child:
            save_and_die(step)
        _, status = os.waitpid(child, 0)
        found.append(len(UniRouter.load(folder).models))
        if os.WIFEXITED(status):
            break
    router.save(folder)
    print(os.waitstatus_to_exitcode(status), len(UniRouter.load(folder).models), *found)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to save the same thing again and again")
@pytest.mark.parametrize("folder", ["clean", "littered"])
def test_a_save_killed_at_any_step_leaves_a_whole_router(folder: str, tmp_path: Path) -> None:
    """By SIGKILL, before each of its openings, renamings and removals: first the old router is there, then the new one.

    It loads each time, and the files that a killed save leaves behind do no harm.
    """
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "router"), folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    status, last, *found = map(int, result.stdout.split())
    assert (status, last) == (0, 2)
    assert found == sorted(found)
    assert set(found) == {1, 2}
    assert len(found) > 8
