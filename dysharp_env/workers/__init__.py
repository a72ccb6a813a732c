"""Who does many things that share nothing: this process, its threads, processes of this machine, or Ray's workers.

Whoever works, and however many, results come back in the order of the things they are of and are the same bytes. Every
worker loads the compiled engine from numba's cache, which the process that starts them fills first, and keeps to one
numerical thread.
"""

from dysharp_env.workers.pools import Processes, Threads
from dysharp_env.workers.workers import Workers

__all__ = ["Processes", "Threads", "Workers"]
