"""Tuning of few-step students by rewards and preferences, in the engine that distils them."""
