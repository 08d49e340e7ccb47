"""Joins definitions, images, daemon, engine and store. The one bridge between asyncio and threads."""
