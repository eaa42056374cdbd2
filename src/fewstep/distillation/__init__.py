"""Train students: score, trajectory, moment and adversarial objectives as parts; a method is a list of them."""
