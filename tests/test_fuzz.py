"""The fuzz campaign in small: thousands of damaged files, a few kills and threads; and that it sees planted harm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.bases import build_bases
from tests.fuzz.kinds import ALL, KINDS, counts
from tests.fuzz.manythreads import run_threads
from tests.fuzz.planted import HARMS
from tests.fuzz.table import CODE, CRASH, FAILURES, HANG, MEMORY, NOT_FINITE, OTHER_EXCEPTION, SAME, Outcome
from tests.fuzz.workers import ROOT, Pool

MUTANTS = 2000
# Kinds that open engines or build networks: a few mutants of each are enough here.
SLOW = ("graph.", "bundle", "manifest", "published.")
FEW = 6
SEEN_AS = {
    "hang": HANG,
    "crash": CRASH,
    "memory": MEMORY,
    "exception": OTHER_EXCEPTION,
    "long": OTHER_EXCEPTION,
    "nan": NOT_FINITE,
    "none": SAME,
    **dict.fromkeys(("exec", "write", "shell", "socket", "canary"), CODE),
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, feature_bundle: Path, picture_bundle: Path) -> Path:
    """The output folder of a campaign, with its bases."""
    folder = tmp_path_factory.mktemp("fuzz")
    build_bases(folder / "bases", {"features": feature_bundle, "pictures": picture_bundle})
    return folder


@pytest.mark.slow
def test_damaged_files_do_no_harm(output: Path) -> None:
    slow = [kind for kind in ALL if kind.name.startswith(SLOW)]
    wanted = dict.fromkeys((kind.name for kind in slow), FEW)
    wanted |= counts(MUTANTS - sum(wanted.values()), [kind for kind in ALL if kind not in slow])
    found: list[Outcome] = []
    Pool(output / "bases", output / "workers", seed=2).run(wanted, on_outcome=found.append)
    assert len(found) == MUTANTS
    assert {outcome.kind for outcome in found} == {kind.name for kind in ALL}
    assert [outcome for outcome in found if outcome.failed] == []


def test_every_planted_harm_is_seen(output: Path) -> None:
    found: list[Outcome] = []
    pool = Pool(output / "bases", output / "planted", seed=0, hang_s=2)
    pool.run({f"planted.{harm}": 1 for harm in HARMS}, on_outcome=found.append)
    assert {one.kind.removeprefix("planted."): one.outcome for one in found} == SEEN_AS


def test_a_campaign_keeps_what_did_harm_and_fails(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = output / "table.json"
    options = ["--output", str(output), "--mutants", "2", "--kind", "planted.exception", "--json", str(table)]
    assert main(["mutants", *options]) == 1
    assert "planted.exception" in capsys.readouterr().out
    assert json.loads(table.read_text())["kinds"]["planted.exception"][OTHER_EXCEPTION] == 2
    kept = output / "failures" / "planted.exception-1"
    assert "--only planted.exception:1" in (kept / "README").read_text()
    assert list((kept / "mutant").iterdir())
    assert main(["mutants", "--output", str(output), "--only", "planted.exception:1"]) == 1
    assert main(["mutants", "--output", str(output), "--only", "planted.none:1"]) == 0


def test_a_mutant_is_the_same_every_time(output: Path, tmp_path: Path) -> None:
    for kind in ALL:
        if kind.name == "run":  # its base is made by the workers
            continue
        folders = [tmp_path / f"{kind.name}-{time}" for time in range(2)]
        for folder in folders:
            folder.mkdir()
            kind.generate(output / "bases", 5, 3, folder)
        first, second = ({path.relative_to(f): _content(path) for path in f.rglob("*")} for f in folders)
        assert first == second


def _content(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    return path.read_bytes() if path.is_file() else path.is_dir()


def test_counts_add_up() -> None:
    assert sum(counts(20_000, list(ALL)).values()) == 20_000
    assert counts(1, [KINDS["run"]]) == {"run": 1}
    assert set(FAILURES) == set(SEEN_AS.values()) - {SAME}


def test_killed_writers_leave_whole_outputs(output: Path) -> None:
    # In a process of its own: the campaign forks, which a process with engines and threads should not.
    code = (
        "import sys; from pathlib import Path; from tests.fuzz.kills import run_kills; "
        "torn = run_kills(Path(sys.argv[1]), Path(sys.argv[2]), 5, 0, ['gallery save', 'camp import']); "
        "sys.exit('\\n'.join(torn) or 0)"
    )
    arguments = [sys.executable, "-c", code, str(output / "bases"), str(output / "kills")]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_threads_share_a_retriever(feature_bundle: Path) -> None:
    assert run_threads(feature_bundle, threads=4, rankings=10) == []
