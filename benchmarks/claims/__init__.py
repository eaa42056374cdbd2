"""What papers of distillation claim, as data: who is compared with whom at what cost. One module, one paper."""
