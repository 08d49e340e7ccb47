"""Joins the parts: definitions, images, the daemon, the engine, the store. The one bridge between asyncio and threads."""
