"""Low-bit networks of diffusers and transformers in folders and files."""
