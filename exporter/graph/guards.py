"""Guards: graph outputs that say whether a prompt is one that the graph was made for.

A guard is a boolean output, (batch,), false for a prompt whose logits mean nothing. Code that runs the graph looks for
all guards by name, and refuses such a prompt with the message below.
"""

IN_VOCABULARY = "in_vocabulary"

GUARDS: dict[str, str] = {
    IN_VOCABULARY: "this model does not know all tokens of the text",
}
"""By name of the guard: the message when it is false."""
