"""Writing results, by the name under which training knows it; see ``dysharp_env.files``."""

from __future__ import annotations

from dysharp_env.files import write_bytes as write_bytes
from dysharp_env.files import write_text as write_text
