"""The drop-in HTTP transport. This package knows httpx, httpx2 and the providers; ``pacer`` knows tokens and time."""

from transports.auto import install, uninstall
from transports.budget import BudgetTransport
from transports.receipt import Receipt

__all__ = ["BudgetTransport", "Receipt", "install", "uninstall"]
