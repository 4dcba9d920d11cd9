"""A folder that is all a user needs, and how it is written."""
