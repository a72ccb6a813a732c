"""The compiled event loop and what it calls; loop.py says at its head what happens in one step."""
