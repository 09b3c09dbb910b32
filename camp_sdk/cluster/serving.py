"""`camp serve` on a cluster of Ray: shards that each hold some parts, and the same application in front of them.

Ray Serve imports `shards_application` and `front_application` by name, with arguments of a configuration file.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from camp_sdk.cluster.building import Cluster, connect, import_ray
from camp_sdk.cluster.parts import read_parts
from camp_sdk.cluster.ray_shards import WAITING, ShardOptions, ShardReplica, by_waiting, name_of
from camp_sdk.runtime.errors import BackendError, InputError
from camp_sdk.server.admission import Admission
from camp_sdk.server.app import create_app
from camp_sdk.server.settings import Settings

FRONT = "camp"
SHARDS = "camp-shards-"  # and the beginning of the bundle's fingerprint: another bundle has shards of its own
# Queries should not wait for long, and a process takes seconds to begin.
SCALING = {"upscale_delay_s": 5.0, "downscale_delay_s": 120.0, "look_back_period_s": 15.0}
MAX_AT_ONCE = 1024  # requests of a process in front, which itself refuses what is too much; Ray Serve's own limit is 5
PATHS = frozenset({"bundle", "index", "gallery", "parts", "keys", "write_keys", "pictures"})


@dataclass(frozen=True)
class Layout:
    """How an application is spread over a cluster.

    Args:
        replicas: Processes of each shard, and of the front.
        cpus: The cores of a process.
        gpus: The GPUs of a process of a shard.
        max_replicas: The most processes of each, begun while queries wait; None for ``replicas``.

    Raises:
        InputError: There would be fewer processes at the most than there are.
    """

    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    max_replicas: int | None = None

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise InputError(f"`max_replicas` is {self.max_replicas}: expected at least {self.replicas}, as `replicas`")

    def scaling(self, **how: Any) -> dict[str, Any]:
        """The number of processes, as an option of a deployment.

        Args:
            **how: What decides how many there are, as Ray Serve's autoscaling takes it.
        """
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        bounds = {"min_replicas": self.replicas, "max_replicas": self.max_replicas}
        return {"autoscaling_config": bounds | SCALING | how}


def settings_for(settings: Settings) -> Settings:
    """Settings of the front, which finds its shards by the bundle that encoded the parts.

    Args:
        settings: The settings of `camp serve`, with ``parts``.

    Raises:
        InputError: They name no parts.
        BundleError: The folder holds no parts.
    """
    if settings.parts is None:
        raise InputError("`ray` serves the `parts` of an index, which `camp index build` makes")
    folder = settings.parts.absolute()
    app = f"{SHARDS}{read_parts(folder).bundle[:12]}"
    return replace(settings, parts=folder, bundle=settings.bundle.absolute(), shards_app=app)


def deploy(settings: Settings, layout: Layout, cluster: Cluster) -> None:
    """Serve on a cluster; what is served there already goes on until the new processes are ready.

    Args:
        settings: The settings, as `settings_for` makes them.
        layout: How they are spread.
        cluster: The cluster.

    Raises:
        BackendError: The cluster cannot be reached, or a process cannot begin; the message says why.
        MissingExtraError: Ray is not installed.
    """
    ray = import_ray()
    connect(ray, cluster)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _check_room(ray, settings, layout)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    arguments = arguments_of(settings, layout)
    own = settings.shards_app or ""
    try:
        serve.run(shards_application(arguments), name=own, route_prefix=None)
        serve.run(front_application(arguments), name=FRONT, route_prefix=settings.root_path or "/")
    except RuntimeError as error:
        raise BackendError(f"the application cannot begin: {error}") from None
    for name in serve.status().applications:
        if name.startswith(SHARDS) and name != own:  # of the bundle before, which no process in front uses any more
            serve.delete(name)


def _check_room(ray: ModuleType, settings: Settings, layout: Layout) -> None:
    """Raise InputError if the shards can never begin; Ray would wait for more machines."""
    shards = len(read_parts(settings.parts or Path()).divided(settings.shards))
    held = ray.cluster_resources()
    for name, each in (("CPU", layout.cpus), ("GPU", layout.gpus)):
        if shards * layout.replicas * each > held.get(name, 0):
            raise InputError(
                f"{shards} shards with {layout.replicas} replicas take {shards * layout.replicas * each:g} {name}s, "
                f"and the cluster has {held.get(name, 0):g}: give fewer `shards`, `replicas` or `threads`"
            )


def serve_until_interrupted() -> None:
    """Wait for Ctrl-C or SIGTERM, and end what `deploy` began on this machine."""
    ray = import_ray()
    from ray import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        serve.shutdown()  # type: ignore[no-untyped-call] # Ray does not annotate it
        ray.shutdown()


def configuration(settings: Settings, layout: Layout) -> dict[str, Any]:
    """The configuration with which `serve deploy` does what `deploy` does.

    Args:
        settings: The settings, as `settings_for` makes them.
        layout: How they are spread.
    """
    module, arguments = __name__, arguments_of(settings, layout)
    shards = {"name": settings.shards_app, "route_prefix": None, "import_path": f"{module}:shards_application"}
    front = {
        "name": FRONT,
        "route_prefix": settings.root_path or "/",
        "import_path": f"{module}:front_application",
    }
    return {
        "http_options": {"host": settings.host, "port": settings.port},
        "applications": [shards | {"args": arguments}, front | {"args": arguments}],
    }


def shards_application(arguments: Mapping[str, Any]) -> Any:
    """The application of the shards.

    Args:
        arguments: As `arguments_of` makes them.
    """
    from ray import serve

    settings, layout = _from_arguments(arguments)
    parts = read_parts(settings.parts or Path())
    bound = []
    for shard, own in enumerate(parts.divided(settings.shards)):
        options = ShardOptions(
            settings.bundle,
            tuple(parts.paths[part] for part in own),
            settings.backend,
            settings.precision,
            settings.threads,
            settings.memory_budget,
        )
        actor = {"num_cpus": layout.cpus, "num_gpus": layout.gpus}
        # Each process in front has one batch under way, so that shards follow their number.
        scaling = layout.scaling(target_ongoing_requests=1.0)
        as_deployment = serve.deployment(name=name_of(shard), ray_actor_options=actor, **scaling)
        bound.append(as_deployment(ShardReplica).bind(options))
    return serve.deployment(name="shards", ray_actor_options={"num_cpus": 0})(_Shards).bind(*bound)


def front_application(arguments: Mapping[str, Any]) -> Any:
    """The application in front of the shards.

    Args:
        arguments: As `arguments_of` makes them.
    """
    from ray import serve

    settings, layout = _from_arguments(arguments)

    def build() -> Any:  # a partial would count as the application itself
        return _front(settings)

    actor = {"num_cpus": 0}  # it waits for the shards most of the time
    scaling = layout.scaling(policy={"policy_function": f"{by_waiting.__module__}:{by_waiting.__name__}"})
    as_deployment = serve.deployment(name="front", ray_actor_options=actor, max_ongoing_requests=MAX_AT_ONCE, **scaling)
    return as_deployment(serve.ingress(build)(Front)).bind()


def arguments_of(settings: Settings, layout: Layout) -> dict[str, Any]:
    """Settings and a layout as plain values, for a configuration file; defaults are left out."""
    found: dict[str, Any] = {}
    for given in (settings, layout):
        for field in fields(given):
            value = getattr(given, field.name)
            if field.default is MISSING or value != field.default:
                found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _from_arguments(arguments: Mapping[str, Any]) -> tuple[Settings, Layout]:
    names = {field.name for field in fields(Layout)}
    own: Any = {name: value for name, value in arguments.items() if name in names}
    others: Any = {name: _typed(name, value) for name, value in arguments.items() if name not in names}
    return Settings(**others), Layout(**own)


def _typed(name: str, value: Any) -> Any:
    if name in PATHS:
        return Path(value)
    if name == "picture_root":
        return tuple(Path(one) for one in value)
    return tuple(value) if isinstance(value, list) else value


def _front(settings: Settings) -> Any:
    app = create_app(settings)
    with ThreadPoolExecutor(1) as thread:  # of the event loop, shards could not be waited for
        thread.submit(app.state.serving.services.load).result()  # here: a process that cannot begin says why
    Front.admission = app.state.serving.dispatcher.admission
    return app


class Front:
    """What Ray Serve asks a process in front, which serves one application."""

    admission: Admission | None = None

    def record_autoscaling_stats(self) -> dict[str, float]:
        """How long the pairs that wait will take, in seconds."""
        admission = self.admission
        return {WAITING: admission.pairs / admission.rate if admission and admission.rate else 0.0}


class _Shards:
    """Ties the shards to one application, which has one deployment that binds the others."""

    def __init__(self, *shards: Any) -> None:
        pass
