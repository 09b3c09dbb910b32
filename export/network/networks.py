"""The networks that can be trained and exported, by name: those of this package, and your own.

A network is a subclass of `Scorer`; it may bring encoders of its own. It is known by a name: "paper" and the like for
those of this package, "my_package.my_module:MyNetwork" for a class that the command line or the caller brings, or the
name of an entry point of the group "camp_sdk.networks" of an installed package. Checkpoints record the name. No module
is imported because a checkpoint names it: `network_named` finds only what was added or installed before.
"""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from camp_sdk.export.network.camp import PaperScorer, ScalarScorer, Scorer
from camp_sdk.export.network.released import RELEASED
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

ENTRY_POINTS = "camp_sdk.networks"
NETWORKS: dict[str, type[Scorer]] = {"paper": PaperScorer, "scalar": ScalarScorer, **RELEASED}
EXPECTED = "my_package.my_module:MyNetwork, a subclass of camp_sdk.export.Scorer"


def add_network(network: type[Scorer]) -> str:
    """Make a network known in this process, so that it can be trained, and its checkpoints can be read.

    Args:
        network: the class.

    Returns:
        Its name, "module:Class", for `ModelConfig.variant` and `TrainConfig.variant`.

    Raises:
        InputError: it is not a subclass of `Scorer`, or its module is the script that runs, which has no name.
    """
    if not (isinstance(network, type) and issubclass(network, Scorer)):
        raise InputError(f"`network` {brief(network)}: expected {EXPECTED}")
    if network.__module__ == "__main__":
        raise InputError(
            f"`network` {network.__qualname__}: define it in a module that can be imported, not in a script"
        )
    name = f"{network.__module__}:{network.__qualname__}"
    NETWORKS[name] = network
    return name


def import_network(name: str) -> str:
    """Import a network that a caller or the command line names, and add it.

    Modules are also looked for in the current folder.

    Args:
        name: "my_package.my_module:MyNetwork", or the name of an entry point.

    Returns:
        The name by which it is known: the module that defines it, and its class.

    Raises:
        InputError: there is no such module or class, or the class is not a subclass of `Scorer`.
    """
    module, colon, attributes = name.partition(":")
    if not colon:
        network_named(name)
        return name
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last: a file here cannot replace an installed module
    try:
        found: Any = reduce(getattr, attributes.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty name
        raise InputError(f"`network` {brief(name)}: {error}; expected {EXPECTED}") from error
    return add_network(found)


def network_named(name: str) -> type[Scorer]:
    """The network of a name: one of this package, one that was added, or one of an installed entry point.

    Args:
        name: "paper" and the like, "module:Class", or the name of an entry point.

    Raises:
        InputError: there is no such network, or its package cannot be imported.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    for entry in entry_points(group=ENTRY_POINTS):
        if name in (entry.name, entry.value):
            NETWORKS[name] = NETWORKS[_load(entry)]
            return NETWORKS[name]
    raise InputError(
        f"network {brief(name)}: expected one of {', '.join(sorted(NETWORKS))}, or give `network` {EXPECTED}"
    )


def _load(entry: EntryPoint) -> str:
    try:
        return add_network(entry.load())
    except (ImportError, AttributeError) as error:
        raise InputError(f"network {entry.name}, an entry point for {entry.value}: {error}") from error
