"""A file for each kind of decision: which candidates it has, and what is shown of them."""
