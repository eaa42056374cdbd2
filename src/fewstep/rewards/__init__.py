"""Rewards: what searches and objectives raise; never the judge of the same run."""
