"""Which folders are which packages; everything else is in pyproject.toml.

The folders ``agents``, ``policies``, ``envs`` and ``configs`` are the packages ``unroll.agents`` and so on. In a
checkout ``unroll/`` links to them, for Python and for type checkers. An install names them here, so that it works where
links cannot be made (Windows).
"""

from setuptools import find_packages, setup

ROOMS = ("agents", "policies", "envs", "configs")

packages = ["unroll"]
for name in find_packages("unroll", exclude=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]):
    packages.append(f"unroll.{name}")
for room in ROOMS:
    packages.append(f"unroll.{room}")
    packages.extend(f"unroll.{room}.{name}" for name in find_packages(room))

setup(packages=packages, package_dir={"unroll": "unroll", **{f"unroll.{room}": room for room in ROOMS}})
