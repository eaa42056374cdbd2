"""Score distillation: directions, weights and noise levels that make DMD, SiD, SIM, TDM and their relatives."""
