"""Maps the packages to their folders; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOTS = {"camp_sdk": "camp_sdk", "camp_sdk.runtime": "runtime", "camp_sdk.export": "export"}

setup(
    packages=[
        name for root, folder in ROOTS.items() for name in (root, *(f"{root}.{n}" for n in find_packages(folder)))
    ]
)
