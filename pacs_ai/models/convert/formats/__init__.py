"""The file formats in which weights are published, read as tables of arrays; no code of theirs is ever run.

Each module's `read` returns name -> array (numpy, little-endian, native types) of one model. Every size that a file
claims is held against the bytes that are there before memory is asked for, links out of a file are refused, and what
would need the publisher's code is refused with the sentence that says what to do instead.
"""
