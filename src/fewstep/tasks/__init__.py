"""What people do with a plan besides drawing from noise."""
