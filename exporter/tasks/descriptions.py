"""What the built-in tasks are, in words: plain data, so that a report needs no torch."""

DESCRIPTIONS = {
    "acronym": "the third letter of a three-word acronym, or all three",
    "greater-than": "a two-digit year later than the one named before",
    "ioi": "the one of two names that was not repeated (indirect object identification)",
}
