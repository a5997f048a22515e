"""Onlookers: what a person sees of a live instance, or of a dead one, without changing anything in it."""
