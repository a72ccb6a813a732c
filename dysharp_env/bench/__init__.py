"""How fast the simulator and the environments are on the machine this runs on, and what they are compared with."""
