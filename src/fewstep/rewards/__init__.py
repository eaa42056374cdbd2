"""Rewards: what searches and objectives raise; never the only judge of the same run."""

from fewstep.rewards.base import REWARDS, Reward, RewardFunction, as_reward, load_reward

__all__ = ["REWARDS", "Reward", "RewardFunction", "as_reward", "load_reward"]
