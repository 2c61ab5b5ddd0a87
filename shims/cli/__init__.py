"""The command line ``void-shim``: parse, choose a backend, print.

Rules of this package: a command holds no logic that a program would want to call; what it shows,
it got from ``shims.core`` or from a backend, or from the engine's ``doctor``. Everything heavy is
imported by the command that needs it, so that ``--help`` and completion answer at once.
"""
