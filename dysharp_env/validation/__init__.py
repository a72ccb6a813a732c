"""How far to believe the simulator: closed forms, packets, another simulator's network, and public measurements."""
