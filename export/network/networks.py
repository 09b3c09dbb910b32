"""The networks that can be trained and exported, by name: those of this package, and your own.

A network is a subclass of `Scorer`; it may bring encoders of its own. It is known by a name: "paper" and the like for
those of this package, "my_package.my_module:MyNetwork" for a class that the command line or the caller brings, or the
name of an entry point of the group "camp_sdk.networks" of an installed package. Checkpoints record the name. No module
is imported because a checkpoint names it: `network_named` finds only what was added or installed before.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from camp_sdk.export.network.camp import PaperScorer, ScalarScorer, Scorer
from camp_sdk.export.network.released import RELEASED
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.manifest import ACTIVATIONS
from camp_sdk.runtime.messages import MAX_TEXT, brief

ENTRY_POINTS = "camp_sdk.networks"
NETWORKS: dict[str, type[Scorer]] = {"paper": PaperScorer, "scalar": ScalarScorer, **RELEASED}
FORM = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
EXPECTED = "my_package.my_module:MyNetwork, a subclass of camp_sdk.export.Scorer"


class NetworkError(InputError):
    """The code of a network raised an error when the network was made."""


def add_network(network: type[Scorer]) -> str:
    """Make a network known in this process, so that it can be trained, and its checkpoints can be read.

    Args:
        network: the class.

    Returns:
        Its name, "module:Class", for `ModelConfig.variant` and `TrainConfig.variant`.

    Raises:
        InputError: it is not a subclass of `Scorer`, or its module is the script that runs, which has no name.
    """
    if not (isinstance(network, type) and issubclass(network, Scorer) and network is not Scorer):
        raise InputError(f"`network` {getattr(network, '__name__', brief(network))}: expected {EXPECTED}")
    if network.activation not in ACTIVATIONS:
        raise InputError(f"{network.__name__}.activation is {brief(network.activation)}: expected one of {ACTIVATIONS}")
    if network.__module__ == "__main__":
        raise InputError(
            f"`network` {network.__qualname__}: define it in a module that can be imported, not in a script"
        )
    name = f"{network.__module__}:{network.__qualname__}"
    NETWORKS[name] = network
    return name


def import_network(name: str) -> str:
    """Import a network that a caller or the command line names, and add it.

    Modules are also looked for in the current folder, while this one is imported.

    Args:
        name: "my_package.my_module:MyNetwork", or the name of an entry point.

    Returns:
        The name by which it is known: the module that defines it, and its class.

    Raises:
        InputError: there is no such module or class, the module raises an error when it is imported, or the class is
            not a subclass of `Scorer`.
    """
    if ":" not in name:
        network_named(name)
        return name
    if not FORM.fullmatch(name):
        raise InputError(f"`network` {brief(name)}: expected {EXPECTED}")
    module, _, attributes = name.partition(":")
    found: Any = _imported(module, name)
    for part in attributes.split("."):
        if not hasattr(found, part):
            raise InputError(f"`network` {name}: {module} has no {attributes}; expected {EXPECTED}")
        found = getattr(found, part)
    return add_network(found)


def _imported(module: str, name: str) -> ModuleType:
    sys.path.append(str(Path.cwd()))  # last: a file here cannot replace an installed module
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"`network` {name}: {raised(error)}") from error
    finally:
        sys.path.pop()


def raised(error: BaseException) -> str:
    """An error of the user's code on one line, with the file and the line that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


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
    known = ", ".join(NETWORKS)
    raise InputError(f"`variant` {name[:MAX_TEXT]}: expected one of {known}, or give `network` {EXPECTED}")


def is_own(network: type[Scorer]) -> bool:
    """Whether a network is the user's, not one of this package."""
    return not network.__module__.startswith("camp_sdk.")


def _load(entry: EntryPoint) -> str:
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # whatever the installed code raises
        raise InputError(f"network {entry.name}, an entry point for {entry.value}: {raised(error)}") from error
    return add_network(found)
