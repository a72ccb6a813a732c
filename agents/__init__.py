"""Learned schedules: commands on top, and the rooms that they are made of.

``policies`` (what chooses, and its files), ``opponents`` (whoever plays a layer), ``evaluation``, ``exact``,
``training``, ``distillation``: each imports rooms before it in this list, and no command. Commands share ``kit``.
"""
