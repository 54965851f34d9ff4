"""Saving where others write, where there is no room, and where others save: the old router or the new one is there."""

import contextlib
import errno
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from unirouter_integrations import StorageError, UniRouter, _storage

PROMPTS = [f"{kind} number {n}" for n in range(12) for kind in ("sum", "poem")]


@pytest.fixture(scope="module")
def router() -> UniRouter:
    return UniRouter.fit(PROMPTS, n_clusters=2)


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


SAVED = {"router.json", "router.safetensors"}


def test_a_link_is_replaced_and_never_followed(router: UniRouter, tmp_path: Path) -> None:
    """Wherever somebody else lays it: what it points to stays as it was."""
    victim, folder = tmp_path / "victim", tmp_path / "router"
    victim.write_text("mine")
    folder.mkdir()
    for name in (*SAVED, "router.safetensors.new"):
        (folder / name).symlink_to(victim)
    router.save(folder)
    assert victim.read_text() == "mine"
    assert files(folder) == SAVED
    assert not any(file.is_symlink() for file in folder.iterdir())
    UniRouter.load(folder)


def test_nobody_can_lay_a_link_where_a_temporary_file_will_be(
    router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is drawn at random. If it is guessed all the same, the save fails, and the link is not followed."""
    seen: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        seen.append(Path(source).name)
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", watched)
        router.save(tmp_path)
        router.save(tmp_path)
    parts = {name for name in seen if name.endswith(".part")}
    assert len(parts) == 4
    assert all(re.fullmatch(r"\.router\.(json|safetensors\.new)\.[0-9a-f]{16}\.part", name) for name in parts)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / f".router.json.{bytes(8).hex()}.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        _storage.replace_file(tmp_path / "router.json", b"theirs")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("step", range(5))
def test_a_full_disk_is_a_storage_error(
    router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: int
) -> None:
    """At whichever write: the old router is whole, or, from the last one on, the new one; no part is left behind."""
    router.save(tmp_path)
    calls = 0
    kept = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fails(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise OSError(code, os.strerror(code))
            return kept[name](*arguments)

        return call

    for name in kept:
        monkeypatch.setattr(os, name, fails(name))
    other = UniRouter.fit(PROMPTS, n_clusters=3)
    message = rf"router could not be saved in .*: {os.strerror(code)}\. .* is whole"
    with contextlib.nullcontext() if step == 4 else pytest.raises(StorageError, match=message):
        other.save(tmp_path)
    monkeypatch.undo()
    assert len(UniRouter.load(tmp_path).clusters) == (3 if step == 4 else 2)
    assert files(tmp_path) - SAVED <= {"router.safetensors.new"}
    other.save(tmp_path)
    assert files(tmp_path) == SAVED


def test_a_real_limit_on_the_size_of_files_is_a_storage_error(router: UniRouter, tmp_path: Path) -> None:
    """As on a full disk: the writing itself fails."""
    pytest.importorskip("resource")
    router.save(tmp_path)
    script = """
        import resource, sys
        from unirouter_integrations import StorageError, UniRouter
        router = UniRouter.load(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            router.save(sys.argv[1])
        except StorageError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large. What was saved there before is whole." in done.stdout
    assert files(tmp_path) == SAVED
    UniRouter.load(tmp_path)


def test_what_killed_writers_have_left_is_removed(router: UniRouter, tmp_path: Path) -> None:
    """By the next save; the files of others stay."""
    for name in (".router.json.0123456789abcdef.part", ".router.safetensors.new.0123456789abcdef.part"):
        (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / ".profile.json.0123456789abcdef.part").write_bytes(b"x")
    (tmp_path / ".router.here.part").mkdir()
    (tmp_path / "router.part").write_bytes(b"x")
    router.save(tmp_path)
    assert files(tmp_path) - SAVED == {".profile.json.0123456789abcdef.part", ".router.here.part", "router.part"}


def test_writers_wait_for_each_other(router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that cannot begin for longer than any save takes says so; the death of the other writer lets it begin."""
    pytest.importorskip("fcntl")
    monkeypatch.setattr(_storage, "_LOCK_SECONDS", 0.0)
    with _storage._locked(tmp_path) as is_only_writer:
        assert is_only_writer
        with pytest.raises(StorageError, match=r"Another process has been saving in .* for 0 seconds"):
            router.save(tmp_path)
    router.save(tmp_path)


def test_a_file_system_without_locks_is_written_to_all_the_same(
    router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what may be the file of another writer is not removed there."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".router.json.0123456789abcdef.part").write_bytes(b"x")
    router.save(tmp_path)
    assert files(tmp_path) == {*SAVED, ".router.json.0123456789abcdef.part"}
    UniRouter.load(tmp_path)


def test_two_writers_at_once(router: UniRouter, tmp_path: Path) -> None:
    """Each save works, and what is read meanwhile is always whole."""
    pytest.importorskip("fcntl")
    router.save(tmp_path)
    script = """
        import sys
        from unirouter_integrations import UniRouter
        router = UniRouter.load(sys.argv[1])
        router.cost_weight = float(sys.argv[2])
        for _ in range(40):
            router.save(sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in (1, 2)]
    while any(writer.poll() is None for writer in writers):
        assert UniRouter.load(tmp_path).cost_weight in {0, 1, 2}
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert files(tmp_path) == SAVED


def test_what_could_not_be_read_again_is_not_saved(
    router: UniRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits of reading hold for saving as well."""
    for limit in ("_MAX_DOCUMENT", "_MAX_ARRAYS"):
        with monkeypatch.context() as patched:
            patched.setattr(_storage, limit, 100)
            with pytest.raises(StorageError, match=r"cannot be saved: it has .* of which at most 100 would be read"):
                router.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
