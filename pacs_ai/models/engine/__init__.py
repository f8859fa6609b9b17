"""How models are run fast and within the memory there is: tiles, precision, resampling in slabs."""
