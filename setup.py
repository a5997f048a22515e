"""The C extensions and the packages, `schemas/` among them: everything else is in pyproject.toml."""

import sys
import sysconfig

from setuptools import Extension, find_packages, setup

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# An append finds its code gone from the caches, so less of it is faster; a decode runs over thousands of rows.
OPTIMIZE = {"_ring": ["-O2"], "_decode": ["-O3"]}
if sys.platform == "linux":
    OPTIMIZE["_ring"].append("-fno-plt")  # a page less for it to find

# Without a compiler, `optional` lets the install succeed without them.
EXTENSIONS = [
    Extension(
        f"ringlog.{name}",
        sources=[f"ringlog/{name}.c"],
        extra_compile_args=[*optimize, "-Wall", "-Wextra", "-fno-strict-aliasing"],
        optional=True,
    )
    for name, optimize in OPTIMIZE.items()
]

# By suffix: the directories of a checkout in use also hold byte code, and what editors leave there.
SCHEMA_SUFFIXES = ("conf", "json", "md", "service", "sql", "yaml", "yml")

# A free-threaded interpreter has no GIL to make the C append atomic: it runs the Python ring.
setup(
    ext_modules=[] if FREE_THREADED else EXTENSIONS,
    # The SQL lies at the top, where people look for it; installed users get it inside the package.
    packages=[*find_packages(include=["ringlog", "ringlog.*"]), "ringlog.schemas"],
    package_dir={"ringlog.schemas": "schemas"},
    package_data={"ringlog": ["py.typed"], "ringlog.schemas": [f"*/*.{suffix}" for suffix in SCHEMA_SUFFIXES]},
)
