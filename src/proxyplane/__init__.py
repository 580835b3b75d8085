"""Python objects travel between processes as small proxies; asyncio first."""

__version__ = "0.1.0"
