"""Runs the measurements and prints their tables."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform

from benchmarks import agents, auto, estimates, overhead, stores, waiters


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    names = ["agents", "auto", "estimates", "overhead", "stores", "waiters"]
    parser.add_argument("which", nargs="?", choices=names, help="one of them only")
    parser.add_argument("--waiters", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=8, help="that share a store")
    args = parser.parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("httpx", "msgspec", "aiolimiter"))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {versions}\n")
    if args.which in (None, "estimates"):
        estimates.report()
    if args.which in (None, "overhead"):
        asyncio.run(overhead.measure())
    if args.which in (None, "auto"):
        auto.report()
    if args.which in (None, "waiters"):
        asyncio.run(waiters.measure(args.waiters))
    if args.which in (None, "agents"):
        agents.report()
    if args.which in (None, "stores"):
        stores.report(args.processes)


if __name__ == "__main__":  # the processes of some benchmarks import this again
    main()
