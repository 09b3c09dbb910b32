"""The command `camp doctor`: what works on this machine, and why the rest does not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from camp_sdk.diagnosis import (
    BackendState,
    BundleState,
    Choice,
    Diagnosis,
    EngineState,
    InputState,
    SelfTestState,
    diagnose,
)
from camp_sdk.first_pass_speed import FirstPassState
from camp_sdk.runtime.messages import visible
from camp_sdk.runtime.selftest import ON_PROCESSOR
from camp_sdk.terminal import progress


def doctor_command(
    bundle: Annotated[
        Path | None, typer.Argument(help="Also check this bundle: its engines and its self-tests.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show which backends work on this machine and whether they score a bundle correctly."""
    found = diagnose(bundle, lambda pairs: progress(pairs, "running the self-test"))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        _print(found, Console())
    raise typer.Exit(0 if found.healthy else 1)


def _print(found: Diagnosis, console: Console) -> None:
    console.print(_shown(_gpu_line(found)))
    console.print(_backends_table(found.backends))
    _print_problems(console, ((state.backend, state.problem) for state in found.backends))
    if found.gpu is None:
        needy = ", ".join(state.backend for state in found.backends if state.backend not in ON_PROCESSOR)
        console.print(f"These backends need an NVIDIA GPU, and this machine has none: {needy}.")
    if found.bundle is not None:
        _print_bundle(found.bundle, console)
    elif not found.healthy:
        console.print(Text("no backend works here", style="red"))


def _gpu_line(found: Diagnosis) -> str:
    driver = f"driver {found.driver_release}" if found.driver_release else "driver"
    if (gpu := found.gpu) is None:
        beside = f" ({driver} is installed)" if found.driver_release else ""
        return f"GPU: none{beside}: {found.gpu_problem}"
    return (
        f"GPU: {gpu.name}, {gpu.total_bytes / 1e9:.1f} GB, compute capability {gpu.compute_capability}, "
        f"{driver} for CUDA {gpu.driver_version}, CUDA runtime {gpu.runtime_version}"
    )


def _backends_table(states: tuple[BackendState, ...]) -> Table:
    table = Table("backend", "version", "opens")
    for state in states:
        version = (state.version or "-").split("-")[0] or "-"  # OpenVINO appends its commit to the version
        table.add_row(state.backend, _shown(version), _yes_or_no(not state.problem))
    return table


def _print_problems(console: Console, problems: Iterable[tuple[str, str]]) -> None:
    """Print one line for each problem, with the names of everything that has it; too long for the table."""
    names: dict[str, list[str]] = {}
    for name, problem in problems:
        if problem:
            names.setdefault(problem, []).append(name)
    for problem, having in names.items():
        console.print(_shown(f"{', '.join(dict.fromkeys(having))}: {problem}"))


def _print_bundle(state: BundleState, console: Console) -> None:
    console.print()
    if state.problem:
        console.print(_shown(f"bundle: {state.problem}", "red"))
        return
    console.print(_shown(f"bundle: {state.folder}, variant {state.variant}, in {', '.join(state.precisions)}"))
    if state.engines:
        console.print(_engines_table(state.engines))
    _print_problems(console, ((f"{engine.graph} engine", engine.problem) for engine in state.engines))
    _print_problems(console, (("record", problem) for problem in state.broken_records))
    for given in state.inputs:
        console.print(_input_line(given))
    if state.self_tests:
        console.print(_tests_table(state.self_tests))
    tests = ((f"{test.backend} in {test.precision}", test.skipped or test.problem) for test in state.self_tests)
    _print_problems(console, tests)
    if state.first_passes:
        console.print(_first_passes_table(state.first_passes))
        _print_problems(console, ((f"{one.backend} in {one.precision}", one.problem) for one in state.first_passes))
    for choice in state.auto:
        console.print(_auto_line(choice))


def _input_line(given: InputState) -> Text:
    if given.problem:
        return _shown(f"golden {given.name}: {given.problem}", "red")
    return _shown(f"golden {given.name}: becomes the {'tokens' if given.name == 'caption' else 'pixels'} of the export")


def _engines_table(engines: tuple[EngineState, ...]) -> Table:
    table = Table("engine", "precision", "built by", Column("MB", justify="right"), "fits")
    for engine in engines:
        library = _shown(f"{engine.backend} {engine.library_version}")
        size = f"{engine.plan_bytes / 1e6:.1f}"
        table.add_row(_shown(engine.graph), _shown(engine.precision), library, size, _yes_or_no(not engine.problem))
    return table


def _tests_table(tests: tuple[SelfTestState, ...]) -> Table:
    numbers = (Column(name, justify="right") for name in ("logits off by", "scores off by"))
    table = Table("self-test", "precision", *numbers, "")
    for test in tests:
        result, style = ("passed", "green") if test.passed else ("FAILED", "red")
        result, style = ("skipped", "yellow") if test.skipped else (result, style)
        errors = (test.max_logit_error, test.max_score_error)
        figures = ("-" if error is None else f"{error:.1e}" for error in errors)
        table.add_row(test.backend, test.precision, *figures, Text(result, style=style))
    return table


def _first_passes_table(states: tuple[FirstPassState, ...]) -> Table:
    table = Table("first pass", "precision", Column("x float32", justify="right"), "hardware support")
    for state in states:
        speed = "-" if state.speed is None else f"{state.speed:.1f}"
        table.add_row(state.backend, state.precision, speed, _yes_or_no(state.instructions))
    return table


def _auto_line(choice: Choice) -> Text:
    if choice.backend is None:
        return _shown(f"auto in {choice.precision}: nothing works: {choice.problem}", "red")
    if choice.problem:
        return _shown(f"auto in {choice.precision}: {choice.backend}, which is broken: {choice.problem}", "red")
    order = ", ".join([*choice.passed_over, choice.backend])
    why = f", the first that works of {order}" if choice.passed_over else ""
    return Text(f"auto in {choice.precision}: {choice.backend}{why}")


def _yes_or_no(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="red")


def _shown(text: str, style: str = "") -> Text:
    """Text that is safe to print: a bundle's files may hold markup or control characters."""
    return Text(visible(text), style=style)
