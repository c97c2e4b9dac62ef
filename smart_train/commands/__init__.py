"""Commands of ``smart-train`` that have a room of their own: arguments and what is printed.

Knows: the library's functions.  Does not know: how any of it is done.
"""
