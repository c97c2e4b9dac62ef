"""Files of people -> pages: found, read in processes of their own, stored so that a stop costs nothing."""
