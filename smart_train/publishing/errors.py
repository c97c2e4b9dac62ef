"""The one error of publishing.

Knows: nothing.  Does not know: why.
"""

from __future__ import annotations


class PublishError(ValueError):
    """What can't be published, or wasn't, and what to do; everything on this machine is as it was."""
