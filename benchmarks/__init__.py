"""Figures: ``python -m benchmarks.NAME [--quick] [--json PATH]``.

A package with this file rather than a bare folder, because Opacus installs a package ``benchmarks`` of its own.
"""
