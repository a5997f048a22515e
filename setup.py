"""The optional C ring: everything else is in pyproject.toml."""

import sysconfig

from setuptools import Extension, setup

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    # A free-threaded interpreter has no limited API and no GIL to make the C append atomic: it
    # runs the Python ring. Without a compiler, `optional` lets the install succeed without it.
    ext_modules=[]
    if FREE_THREADED
    else [
        Extension(
            "ringlog._ring",
            sources=["ringlog/_ring.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-fno-strict-aliasing"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
