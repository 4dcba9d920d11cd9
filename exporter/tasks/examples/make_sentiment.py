"""Write sentiment.jsonl: is a short review positive or negative, by next token?

    python -m exporter.tasks.examples.make_sentiment

Every phrase was written by hand for this file. Within a kind of thing each subject goes with each verdict; what stands
before and behind them varies, so that prompts differ in length. No reviews with their labels stand before the one that
is asked for: SmolLM2 is right on 97 % of the patching and selection sets without any. With a positive and then a
negative one before it that is 86 %, the other way round 98 %, at three times the tokens.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

OUT = Path(__file__).with_name("sentiment.jsonl")
LABELS = (" positive", " negative")

# Subjects; verdicts that are positive; verdicts that are negative.
KINDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "film": (
        ["The film", "This movie", "The sequel", "Her new documentary"],
        ["was a delight from start to finish", "kept us on the edge of our seats",
         "is funny, warm and beautifully shot", "has the best ending I have seen in years",
         "deserves every award it has won", "moved me to happy tears",
         "is even better the second time"],
        ["was painfully slow and far too long", "put half of the audience to sleep",
         "has a stupid plot and worse acting", "is the worst thing I have seen this year",
         "insults anyone with a brain", "was so boring that we left early",
         "falls apart after ten minutes"],
    ),
    "restaurant": (
        ["The pasta", "The fish soup", "Our dinner", "The lunch menu"],
        ["was fresh, generous and delicious", "tasted wonderful", "was worth every cent", "was cooked to perfection",
         "was the highlight of our trip", "made everyone at the table smile", "came quickly and was excellent"],
        ["was cold and tasted of nothing", "was burnt and far too salty", "made my wife sick for two days",
         "came an hour late and was awful", "was disgusting", "was overpriced and barely edible",
         "looked like leftovers from last week"],
    ),
    "book": (
        ["The novel", "This biography", "Her second book", "The short story collection"],
        ["is a joy to read", "is clever, honest and full of life", "is impossible to put down",
         "taught me more than a year at school", "has characters I will never forget", "is a small masterpiece",
         "made me laugh out loud on the bus"],
        ["is dull and badly written", "repeats the same tired idea on every page", "is full of silly mistakes",
         "bored me to tears", "reads like a bad school essay", "was a struggle to finish",
         "has no plot, no style and no point"],
    ),
    "hotel": (
        ["The hotel", "Our room", "The guest house by the lake", "The campsite"],
        ["was spotless and very quiet", "was lovely, with a view I will never forget", "was perfect for our family",
         "exceeded all our hopes", "felt like a second home", "was beautiful and surprisingly cheap",
         "is a place we will gladly come back to"],
        ["was dirty and smelled of smoke", "was a nightmare from the first night",
         "was noisy, damp and full of insects", "looked nothing like the pictures",
         "is a disgrace", "was filthy and absurdly expensive",
         "had broken windows and no hot water"],
    ),
    "device": (
        ["The phone", "This laptop", "The new camera", "The coffee machine"],
        ["works perfectly and looks great", "is fast, solid and easy to use", "does everything it promises",
         "is the best I have ever owned", "was worth the money", "still runs like new after three years",
         "makes my mornings so much better"],
        ["broke after two days", "is slow, ugly and unreliable", "stopped working within a week",
         "is a piece of junk", "overheats and then dies", "never worked properly",
         "is the worst purchase of my life"],
    ),
    "concert": (
        ["The concert", "Their new album", "The opening act", "The choir"],
        ["was simply brilliant", "gave me goosebumps", "was full of energy and joy", "sounded magnificent",
         "was the best night of my summer", "left the whole hall cheering", "was tender, bold and beautiful"],
        ["was a terrible mess", "hurt my ears and my patience", "was out of tune all night", "sounded dreadful",
         "was a huge disappointment", "drove people out of the hall", "was lifeless and lazy"],
    ),
    "service": (
        ["The delivery", "Their customer service", "The repair shop", "The moving company"],
        ["was quick, friendly and careful", "solved my problem in five minutes", "was outstanding",
         "could not have been more helpful", "treated us with real kindness", "was a pleasure to deal with",
         "did a fantastic job"],
        ["was late, rude and careless", "ignored all of my complaints", "was a disaster",
         "could not have been less helpful", "treated us with contempt", "lied to me twice",
         "did a horrible job and charged double"],
    ),
    "course": (
        ["The language course", "The cooking class", "The teacher", "The workshop"],
        ["was inspiring and great fun", "was superb, and I learned so much", "made hard things easy",
         "was patient, clear and full of good ideas", "gave me back my confidence", "was better than I dared to hope",
         "was excellent value"],
        ["was boring and badly prepared", "was useless, and I learned nothing", "made easy things hard",
         "was confusing, chaotic and dull", "was a waste of three weekends", "was much worse than I feared",
         "was a total rip-off"],
    ),
    "clothes": (
        ["The jacket", "These shoes", "The winter coat", "The backpack"],
        ["fit perfectly and feel wonderful", "look even better than in the picture", "kept me warm and dry all winter",
         "are comfortable from the first day", "are beautifully made", "earned me a lot of compliments",
         "survived a whole year of hard use"],
        ["fell apart after one wash", "look cheap and feel worse", "let the rain in on the first day",
         "are painful to wear", "are badly made", "arrived torn and stained",
         "lost all color within a week"],
    ),
    "game": (
        ["The game", "The puzzle", "The new level", "This card game"],
        ["is wonderfully addictive", "is great fun for all ages", "is smart, pretty and fair",
         "kept the kids happy for hours", "is the best we have played in years", "gets better with every round",
         "is a real gem"],
        ["is hopelessly broken", "is no fun at all", "is ugly, unfair and full of bugs",
         "made the kids cry with boredom", "is the worst we have ever tried", "crashes every few minutes",
         "is a shameless waste of time"],
    ),
}  # fmt: skip
PLURAL = {"These shoes"}
LEADS = [
    "This is my first review.", "Here is what I think.", "I had read a lot about this.", "Just a few words.",
    "A friend had told me about it.", "We planned it for weeks.",
]  # fmt: skip
TAILS = (
    ["I would recommend it to anyone.", "Thank you so much!", "Ten out of ten.", "We will be back.", "I am so happy."],
    ["I want my money back.", "Never again.", "Stay away.", "I regret every cent.", "What a disappointment."],
)
# Unseen in the rest of the file: other wordings, and other kinds of things.
WORDINGS = (
    ["Wow. Just wow. {} exceeded every hope I had.", "If I could, I would give {} six stars.",
     "{} put a huge smile on my face.", "I can't stop telling my friends how good {} was.",
     "All of us fell in love with {} at once.", "Hats off to everybody behind {}, it is superb."],
    ["Ugh. {} let me down in every possible way.", "If I could, I would give {} zero stars.",
     "{} ruined our whole weekend.", "I can't believe anybody pays for {}, it is that bad.",
     "All of us hated {} at once.", "Shame on everybody behind {}, it is garbage."],
)  # fmt: skip
THINGS = ["the musical", "the museum", "the boat trip", "the bakery", "the podcast", "the zoo", "the city tour",
          "the spa", "the ferry", "the exhibition"]  # fmt: skip


def write_examples() -> str:
    """The lines of the file, always the same."""
    rng = random.Random(0)
    lines = []
    for subjects, *verdicts in KINDS.values():
        for subject in subjects:
            for label, answer in enumerate(LABELS):
                for verdict in verdicts[label]:
                    parts = [f"{subject} {_agree(subject, verdict)}."]
                    if rng.random() < 0.3:
                        parts.insert(0, rng.choice(LEADS))
                    if rng.random() < 0.4:
                        parts.append(rng.choice(TAILS[label]))
                    lines.append(_line(" ".join(parts), answer))
    rng.shuffle(lines)
    for label, answer in enumerate(LABELS):
        for wording in WORDINGS[label]:
            for thing in THINGS:
                text = wording.format(thing)
                lines.append(_line(text[0].upper() + text[1:], answer, split="ood:wording"))
    return "".join(lines)


def _agree(subject: str, verdict: str) -> str:
    """Verdicts on clothes are written for several; most subjects are one."""
    if subject in PLURAL or subject not in KINDS["clothes"][0]:
        return verdict
    singular = {"fit": "fits", "look": "looks", "are": "is", "feel": "feels"}
    words = verdict.split()
    return " ".join(singular.get(word, word) for word in words)


def _line(review: str, answer: str, **fields: str) -> str:
    prompt = f"Review: {review}\nSentiment:"
    return json.dumps({"prompt": prompt, "answer": answer, "choices": list(LABELS), **fields}) + "\n"


if __name__ == "__main__":
    OUT.write_text(write_examples(), encoding="utf-8")
