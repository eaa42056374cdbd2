"""One file per training stage, each with `Config` and `build(config) -> Stage`."""
