"""Guards: graph outputs that say whether a prompt is one that the graph was made for.

A guard is a boolean output, (batch,), false for a prompt whose logits mean nothing. Code that runs the graph looks for
all guards by name, and refuses such a prompt with the message below.
"""

IN_VOCABULARY = "in_vocabulary"
IN_SCOPE = "in_scope"
SCOPE_DISTANCE = "scope_distance"  # an output beside in_scope, (batch,) float32: 1 at the limit

GUARDS: dict[str, str] = {
    IN_VOCABULARY: "this model does not know all tokens of the text",
    IN_SCOPE: "this model sees that the text is none of its task",
}
"""By name of the guard: the message when it is false."""

REMEDIES: dict[str, str] = {
    IN_VOCABULARY: "give prompts of its task, or export with --vocab full",
    IN_SCOPE: "give prompts of its task, or export without --guard",
}
"""By name of the guard: what to do where it is false."""

TEXT_GUARDS = (IN_VOCABULARY,)
"""Guards that judge any text; `in_scope` judges a prompt alone, not what is generated after it."""
