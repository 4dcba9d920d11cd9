"""Write agreement.jsonl: which verb agrees with the subject, also where another noun stands in between?

    python -m exporter.tasks.examples.make_agreement

Every phrase was written by hand for this file. Each subject occurs in the singular and the plural, with the noun in
between in both as well, so that neither the last noun nor the wording tells the answer.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

OUT = Path(__file__).with_name("agreement.jsonl")
SINGULAR, PLURAL = (" is", " was"), (" are", " were")

# Subject (singular, plural), what follows it, the noun in between (singular, plural).
PHRASES = [
    ("key", "keys", "to the old", "cabinet", "cabinets"),
    ("door", "doors", "of the", "garage", "garages"),
    ("picture", "pictures", "of the little", "boat", "boats"),
    ("letter", "letters", "from the", "lawyer", "lawyers"),
    ("report", "reports", "about the", "accident", "accidents"),
    ("path", "paths", "behind the", "house", "houses"),
    ("window", "windows", "above the", "shop", "shops"),
    ("story", "stories", "about the", "king", "kings"),
    ("teacher", "teachers", "of the", "class", "classes"),
    ("tree", "trees", "near the", "bridge", "bridges"),
    ("box", "boxes", "under the", "table", "tables"),
    ("dog", "dogs", "of the", "neighbor", "neighbors"),
    ("road", "roads", "to the", "village", "villages"),
    ("song", "songs", "about the", "soldier", "soldiers"),
    ("answer", "answers", "to the difficult", "question", "questions"),
    ("leaf", "leaves", "on the", "branch", "branches"),
    ("wheel", "wheels", "of the", "truck", "trucks"),
    ("child", "children", "with the red", "balloon", "balloons"),
    ("friend", "friends", "of the", "actor", "actors"),
    ("map", "maps", "of the", "island", "islands"),
    ("label", "labels", "on the", "bottle", "bottles"),
    ("book", "books", "by the young", "author", "authors"),
    ("lamp", "lamps", "beside the", "bed", "beds"),
    ("sign", "signs", "in front of the", "station", "stations"),
    ("cake", "cakes", "with the", "candle", "candles"),
    ("player", "players", "behind the", "coach", "coaches"),
    ("flower", "flowers", "in the blue", "vase", "vases"),
    ("bird", "birds", "above the", "field", "fields"),
    ("photo", "photos", "of the", "wedding", "weddings"),
    ("price", "prices", "of the", "ticket", "tickets"),
    ("horse", "horses", "in front of the", "barn", "barns"),
    ("ship", "ships", "beyond the", "harbor", "harbors"),
    ("nurse", "nurses", "from the", "hospital", "hospitals"),
    ("boy", "boys", "next to the", "policeman", "policemen"),
    ("roof", "roofs", "of the", "church", "churches"),
    ("woman", "women", "behind the", "counter", "counters"),
    ("tool", "tools", "for the", "gardener", "gardeners"),
    ("plan", "plans", "for the new", "school", "schools"),
    ("man", "men", "with the heavy", "suitcase", "suitcases"),
    ("cat", "cats", "on the", "chair", "chairs"),
]
# Subject, and a clause whose own verb does not show a number.
CLAUSES = [
    ("cup", "cups", "that the", "guest", "guests", "broke"),
    ("poem", "poems", "that the", "student", "students", "wrote"),
    ("house", "houses", "that the", "builder", "builders", "sold"),
    ("car", "cars", "that the", "thief", "thieves", "stole"),
    ("steak", "steaks", "that the", "cook", "cooks", "bought"),
    ("bill", "bills", "that the", "customer", "customers", "paid"),
    ("game", "games", "that the", "team", "teams", "lost"),
    ("bag", "bags", "that the", "porter", "porters", "carried"),
    ("idea", "ideas", "that the", "expert", "experts", "liked"),
    ("room", "rooms", "that the", "maid", "maids", "cleaned"),
    ("wall", "walls", "that the", "painter", "painters", "finished"),
    ("film", "films", "that the", "critic", "critics", "saw"),
    ("apple", "apples", "that the", "farmer", "farmers", "picked"),
    ("rule", "rules", "that the", "judge", "judges", "made"),
    ("coat", "coats", "that the", "tailor", "tailors", "repaired"),
    ("ring", "rings", "that the", "widow", "widows", "kept"),
    ("bridge", "bridges", "that the", "engineer", "engineers", "built"),
    ("toy", "toys", "that the", "girl", "girls", "wanted"),
    ("boat", "boats", "that the", "fisherman", "fishermen", "owned"),
    ("test", "tests", "that the", "pupil", "pupils", "passed"),
    ("guard", "guards", "who helped the", "tourist", "tourists", ""),
    ("waiter", "waiters", "who served the", "guest", "guests", ""),
    ("doctor", "doctors", "who saved the", "patient", "patients", ""),
    ("driver", "drivers", "who met the", "singer", "singers", ""),
]
ADJECTIVES = ["old", "small", "famous", "beautiful", "strange", "other", "new", "last"]
OPENINGS = ["", "", "", "I think that", "Everybody knows that", "As you can see,", "According to the newspaper,"]
# Unseen in the rest of the file: other nouns in other sentences, and two nouns in between.
UNSEEN = [
    ("candidate", "candidates", "against the", "law", "laws"),
    ("goat", "goats", "beside the", "fence", "fences"),
    ("cousin", "cousins", "of the", "senator", "senators"),
    ("drawer", "drawers", "below the", "shelf", "shelves"),
    ("recipe", "recipes", "from the", "chef", "chefs"),
    ("statue", "statues", "behind the", "fountain", "fountains"),
    ("rumor", "rumors", "about the", "merger", "mergers"),
    ("tent", "tents", "near the", "lake", "lakes"),
    ("pilot", "pilots", "of the", "aircraft carrier", "aircraft carriers"),
    ("scar", "scars", "on the", "knee", "knees"),
]
UNSEEN_OPENINGS = ["It turned out that", "Nobody told us why", "Let us ask whether"]
PLACES = [("beyond the", "hill", "hills"), ("across the", "river", "rivers"), ("outside the", "town", "towns")]


def write_examples() -> str:
    """The lines of the file, always the same."""
    rng = random.Random(0)
    lines: dict[str, str] = {}

    def add(opening: str, subject: str, rest: str, *, plural: bool, split: str | None = None) -> None:
        start = f"{opening} the" if opening else "The"
        prompt = " ".join(part for part in (start, subject, rest) if part)
        right = PLURAL if plural else SINGULAR
        fields = {"prompt": prompt, "answers": right, "choices": SINGULAR + PLURAL}
        lines[prompt] = json.dumps(fields | ({} if split is None else {"split": split})) + "\n"

    for one, several, link, *between in PHRASES:
        for plural, noun in ((False, one), (True, several)):
            for other in between:
                add(rng.choice(OPENINGS), noun, f"{link} {other}", plural=plural)
                add(rng.choice(OPENINGS), f"{rng.choice(ADJECTIVES)} {noun}", f"{link} {other}", plural=plural)
            add(rng.choice(OPENINGS), f"{rng.choice(ADJECTIVES)} {noun}", "", plural=plural)
    for one, several, link, *between, verb in CLAUSES:
        for plural, noun in ((False, one), (True, several)):
            for other in between:
                add(rng.choice(OPENINGS), noun, f"{link} {other} {verb}".strip(), plural=plural)
    main = list(lines.values())
    rng.shuffle(main)
    lines.clear()
    for one, several, link, *between in UNSEEN:
        for plural, noun in ((False, one), (True, several)):
            for other in between:
                add(rng.choice(UNSEEN_OPENINGS), noun, f"{link} {other}", plural=plural, split="ood:nouns")
    for one, several, link, *between in PHRASES[::2]:
        for plural, noun in ((False, one), (True, several)):
            place, *third = rng.choice(PLACES)
            rest = f"{link} {rng.choice(between)} {place} {rng.choice(third)}"
            add(rng.choice(OPENINGS), noun, rest, plural=plural, split="ood:two-nouns")
    return "".join([*main, *lines.values()])


if __name__ == "__main__":
    OUT.write_text(write_examples(), encoding="utf-8")
