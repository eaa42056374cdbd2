"""Published methods as data, one module each: a function `(process, *, options) -> Method` under `@preset(name)`."""
