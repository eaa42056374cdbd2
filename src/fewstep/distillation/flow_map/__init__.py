"""Trajectory objectives as parts: a source of states, the times of a jump, a target, a metric, weights."""
