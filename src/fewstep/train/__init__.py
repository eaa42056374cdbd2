"""The one training loop: devices, precision, checkpoints, averages, several processes."""
