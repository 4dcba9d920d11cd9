"""Two data files as examples of a task of one's own, and the scripts that wrote them."""
