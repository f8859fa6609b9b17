"""Harnesses that kill the node, cut its power and break its disk, and a checker that trusts none of its words."""
