"""Small worlds to distil in: a mixture with its exact teacher, 8x8 digits and shapes with trained ones."""
