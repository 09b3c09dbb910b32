"""The cores that a process may use: its affinity, within the quota of the control groups around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from camp_sdk.runtime import backends, threads
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.threads import available_cores, core_quota, physical_cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of /sys/fs/cgroup and /proc/self/cgroup, the latter without a group."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    monkeypatch.setattr(threads, "CONTROL_GROUPS", folder)
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(threads, "CPUS", tmp_path / "no cores")
    return folder


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", None)]
)
def test_the_quota_of_a_container(groups: Path, tmp_path: Path, quota: str, cores: int | None) -> None:
    (tmp_path / "own").write_text("0::/\n")
    write(groups, cpu__max=quota + "\n")
    assert core_quota() == cores
    assert available_cores() == physical_cores() == (cores or 64)


def test_the_smallest_quota_of_the_groups_around_counts(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/user.slice/job\n")
    write(groups / "user.slice" / "job", cpu__max="max 100000")
    write(groups / "user.slice", cpu__max="300000 100000")
    write(groups, cpu__max="800000 100000")
    assert core_quota() == 3


def test_the_path_of_the_host_inside_a_container(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/docker/1234567890\n")
    write(groups, cpu__max="400000 100000")
    assert core_quota() == 4


def test_the_older_interface(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("12:memory:/box\n4:cpu,cpuacct:/box\n")
    write(groups / "cpu,cpuacct" / "box", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="50000\n")
    write(groups / "cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert core_quota() == 3


@pytest.mark.parametrize("quota", ["", "100000", "a b", "1 0", "1 2 3", "\xff\xfe"])
def test_a_quota_that_cannot_be_read(groups: Path, tmp_path: Path, quota: str) -> None:
    (tmp_path / "own").write_text("0::/\n")
    write(groups, cpu__max=quota)
    assert core_quota() is None


def test_no_control_groups(groups: Path) -> None:
    assert core_quota() is None


def test_more_quota_than_cores(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    write(groups, cpu__max="12800000 100000")
    assert available_cores() == 64


@pytest.mark.parametrize(("threads_given", "expected"), [(None, 3), (5, 5)])
def test_engines_keep_to_the_quota(
    feature_bundle: Path, monkeypatch: pytest.MonkeyPatch, threads_given: int | None, expected: int
) -> None:
    opened = []
    real = backends.OnnxRuntimeEngine

    def engine(*arguments: object, **options: object) -> object:
        opened.append(arguments[2])
        return real(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(backends, "OnnxRuntimeEngine", engine)
    monkeypatch.setattr(backends, "core_quota", lambda: 3)
    backends.open_engine(Bundle(feature_bundle), "image", "onnxruntime", threads_given).close()
    assert opened == [expected]
