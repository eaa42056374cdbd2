"""Published systems, one small module each: only what is special to it."""
