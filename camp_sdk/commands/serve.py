"""The command `camp serve`: searches over HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from camp_sdk.cluster.building import LOCAL, Cluster
from camp_sdk.commands.options import (
    BackendOption,
    MegapixelsOption,
    MemoryOption,
    ThreadsOption,
    bytes_of,
)
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief
from camp_sdk.server.settings import (
    BATCH_PAIRS,
    DRAIN_S,
    LOG_FORMATS,
    MAX_BODY_BYTES,
    SHARD_LIMIT_S,
    TIME_LIMIT_S,
    Settings,
)
from camp_sdk.terminal import stderr

NO_SETTINGS = frozenset({"config", "ray", "replicas", "max_replicas", "print_config"})
CONTEXT = {"auto_envvar_prefix": "CAMP"}  # --time-limit is CAMP_TIME_LIMIT


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let the settings of a file take the place of the defaults: below options and the environment."""
    if path is None:
        return None
    known = {parameter.name for parameter in context.command.params} - {"config", "help"}
    found = {name.replace("-", "_"): value for name, value in _toml(path).items()}
    unknown = sorted(found.keys() - known)
    if unknown:
        raise InputError(f"{path} sets {brief(unknown[0])}: expected one of {', '.join(sorted(filter(None, known)))}")
    context.default_map = {name: _as_text(value) for name, value in found.items()}
    return path


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None


def _as_text(value: Any) -> Any:
    """A value as an option on the command line would have it."""
    return [str(one) for one in value] if isinstance(value, list) else str(value)


def serve_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder written by camp export.", envvar="CAMP_BUNDLE")],
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of these options: time-limit = 10.", callback=_read_config, is_eager=True),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Index to search.")] = None,
    ann: Annotated[bool, typer.Option("--ann", help="Choose shortlists as `camp index ann` allows.")] = False,
    gallery: Annotated[Path | None, typer.Option(help="Gallery to search, instead of --index.")] = None,
    parts: Annotated[Path | None, typer.Option(help="Folder of parts to search, of `camp index build`.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    root_path: Annotated[str, typer.Option(help="Path under which a reverse proxy shows the server.")] = "",
    keys: Annotated[Path | None, typer.Option(help="File of keys for reading, one a line.")] = None,
    write_keys: Annotated[Path | None, typer.Option(help="File of keys for writing; without it, nobody can.")] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Serve others although there are no keys.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Site whose pages may use the server; repeatable.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Host name to take, without keys; repeatable.")] = None,
    allow_fetch: Annotated[
        list[str] | None, typer.Option(help="Host from which pictures are fetched by URL; repeatable.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder that keeps uploaded pictures.")] = None,
    picture_root: Annotated[
        list[Path] | None, typer.Option(help="Folder of pictures besides those of index and uploads; repeatable.")
    ] = None,
    max_body: Annotated[
        int | None,
        typer.Option(
            parser=bytes_of, metavar="SIZE", help=f"Largest body of a request. Default: {MAX_BODY_BYTES >> 20}M."
        ),
    ] = None,
    max_megapixels: MegapixelsOption = MAX_MEGAPIXELS,
    batch_pairs: Annotated[int, typer.Option(help="Most pairs of a batch of requests.", min=1)] = BATCH_PAIRS,
    max_waiting_pairs: Annotated[
        int | None,
        typer.Option(help="Most pairs that may wait. Default: a second of work, at least eight requests.", min=1),
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Most seconds of a request.", min=0.1)] = TIME_LIMIT_S,
    ray: Annotated[
        str | None, typer.Option(help="Serve --parts on a cluster of Ray: its address; local starts one here.")
    ] = None,
    shards: Annotated[int, typer.Option(help="Shards that hold the parts, with --ray.", min=1)] = 1,
    replicas: Annotated[int, typer.Option(help="Processes of each shard, with --ray.", min=1)] = 1,
    max_replicas: Annotated[
        int | None,
        typer.Option(help="Most processes of each, with --ray, while queries wait. Default: --replicas.", min=1),
    ] = None,
    shard_limit: Annotated[
        float, typer.Option(help="Most seconds of a shard, with --ray; then answers are partial.", min=0.1)
    ] = SHARD_LIMIT_S,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration for `serve deploy`, and end.")
    ] = False,
    drain: Annotated[float, typer.Option(help="Seconds to go on after SIGTERM, not ready.", min=0)] = DRAIN_S,
    log_format: Annotated[str, typer.Option(help=f"{' or '.join(LOG_FORMATS)}.")] = "line",
    backend: BackendOption = "auto",
    precision: Annotated[
        str, typer.Option(help="As in camp rank; int8: searches in two passes, the second in float32.")
    ] = "float32",
    threads: ThreadsOption = None,
    memory_budget: MemoryOption = None,
) -> None:
    """Answer searches over HTTP; every option is also read from the environment: CAMP_PORT=8000."""
    # Before anything else is a local: the parameters, whose names are those of the settings.
    given = {name: value for name, value in locals().items() if name not in NO_SETTINGS and value is not None}
    options: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = Settings(**options)
    if ray is not None or print_config:
        layout = (replicas, settings.threads or 1, 0.0, max_replicas)
        _serve_on_ray(settings, ray, layout, print_config)
        return
    from camp_sdk.server.run import serve  # here: the other commands do not need the extra

    serve(settings)


def _serve_on_ray(settings: Settings, address: str | None, spread: tuple[Any, ...], print_config: bool) -> None:
    from camp_sdk.cluster import serving  # here: the other commands do not need the extra

    settings, layout = serving.settings_for(settings), serving.Layout(*spread)
    if print_config:
        typer.echo(json.dumps(serving.configuration(settings, layout), indent=2))
        return
    serving.deploy(settings, layout, Cluster(address or LOCAL, settings.threads or 1))
    stderr.print(f"listening at http://{settings.host}:{settings.port}", markup=False, highlight=False)
    if address == LOCAL:
        serving.serve_until_interrupted()
