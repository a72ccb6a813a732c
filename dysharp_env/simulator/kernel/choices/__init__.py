"""A file for each kind of decision.

Each says what its SM group does as long as it has no choice (``act``), which candidates it then has (``list``), what is
shown of one (``describe``), and what comes of it (``take``). ``kernel/kinds.py`` calls them by the kind.
"""
