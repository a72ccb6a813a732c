"""Opponents: whoever plays a layer, from hand-designed schedules to trained runs."""
