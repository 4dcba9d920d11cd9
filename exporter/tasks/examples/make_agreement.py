"""Write agreement.jsonl: which verb agrees with the subject, also where another noun stands in between?

    python -m exporter.tasks.examples.make_agreement

Every phrase was written by hand for this file. Each subject occurs in the singular and the plural, with the noun in
between in both as well, so that neither the last noun nor the wording tells the answer. The lines with an answer are
cut into the three sets by the seed. The lines without one are patching lines, which the dense model is asked about:
their nouns and links come from word lists at random, with none, one or two nouns in between.

Of the unseen sets, `nouns` has other nouns, `two-nouns` two nouns in between (those of the patching lines are others),
`participles` a construction that no other line has, and `swapped` asks for each pair of noun forms in both orders
("The wizard behind the robots", "The robots behind the wizard"): the same bag of words has both answers, and since no
other line has these nouns, pairs of words do not tell either. `benchmarks/bag_of_words.py` measures it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from exporter.tasks.examples import agreement_words as words

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
# A construction that only its unseen set has: a subject, a participle and another noun.
PARTICIPLES = [
    ("letter", "letters", "hidden under", "carpet", "carpets"),
    ("car", "cars", "parked beside", "tree", "trees"),
    ("dog", "dogs", "chased by", "child", "children"),
    ("book", "books", "written by", "teacher", "teachers"),
    ("house", "houses", "surrounded by", "wall", "walls"),
    ("boy", "boys", "sitting near", "window", "windows"),
    ("woman", "women", "talking to", "doctor", "doctors"),
    ("song", "songs", "sung by", "girl", "girls"),
    ("picture", "pictures", "painted by", "artist", "artists"),
    ("bird", "birds", "flying over", "ship", "ships"),
    ("box", "boxes", "filled with", "apple", "apples"),
    ("lamp", "lamps", "hanging above", "table", "tables"),
    ("man", "men", "waiting for", "bus", "buses"),
    ("road", "roads", "leading to", "farm", "farms"),
    ("cake", "cakes", "baked for", "guest", "guests"),
]
# In no other line: each pair in both orders, so that a bag of words has both answers.
SWAPPED = [
    ("wizard", "robot"), ("monkey", "clown"), ("banker", "dentist"), ("lion", "rabbit"),
    ("sailor", "pirate"), ("tractor", "scooter"), ("parrot", "eagle"), ("vampire", "ghost"),
    ("kettle", "pumpkin"), ("duck", "swan"), ("hedgehog", "squirrel"), ("otter", "penguin"),
    ("helicopter", "rocket"), ("refrigerator", "freezer"), ("professor", "inventor"), ("castle", "tower"),
    ("pebble", "brick"), ("snake", "frog"), ("surfer", "skater"), ("blanket", "pillow"),
    ("donkey", "turtle"), ("astronaut", "miner"), ("pencil", "eraser"), ("magnet", "lantern"),
    ("owl", "spider"), ("hammer", "nail"), ("goalkeeper", "referee"), ("beekeeper", "shepherd"),
    ("planet", "comet"), ("skeleton", "scarecrow"),
]  # fmt: skip
SWAPPED_LINKS = ["next to", "beside", "in front of"]
UNSEEN_OPENINGS = ["It turned out that", "Nobody told us why", "Let us ask whether"]
PLACES = [("beyond the", "hill", "hills"), ("across the", "river", "rivers"), ("outside the", "town", "towns")]
N_UNLABELLED = 2000

Add = Callable[..., None]


def write_examples() -> str:
    """The lines of the file, always the same."""
    rng = random.Random(0)
    lines: dict[str, str] = {}

    def add(opening: str, subject: str, rest: str, *, plural: bool | None, split: str | None = None) -> None:
        start = f"{opening} the" if opening else "The"
        prompt = " ".join(part for part in (start, subject, rest) if part)
        fields: dict[str, object] = {"prompt": prompt}
        if plural is not None:
            fields |= {"answers": PLURAL if plural else SINGULAR, "choices": SINGULAR + PLURAL}
        lines.setdefault(prompt, json.dumps(fields | ({} if split is None else {"split": split})) + "\n")

    _add_main(add, rng)
    main = list(lines.values())
    rng.shuffle(main)
    n_main = len(lines)
    _add_unseen(add, rng)
    n_labelled = len(lines)
    while len(lines) < n_labelled + N_UNLABELLED:
        _add_unlabelled(add, rng)
    rest = list(lines.values())[n_main:]
    return "".join([*main, *rest])


def _add_main(add: Add, rng: random.Random) -> None:
    """One noun in between, or a clause with one, or none."""
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


def _add_unseen(add: Add, rng: random.Random) -> None:
    """The unseen sets. Each noun form of `swapped` stands first as often as last."""
    for one, several, link, *between in UNSEEN:
        for plural, noun in ((False, one), (True, several)):
            for other in between:
                add(rng.choice(UNSEEN_OPENINGS), noun, f"{link} {other}", plural=plural, split="ood:nouns")
    for one, several, link, *between in PHRASES[::2]:
        for plural, noun in ((False, one), (True, several)):
            place, *third = rng.choice(PLACES)
            rest = f"{link} {rng.choice(between)} {place} {rng.choice(third)}"
            add(rng.choice(OPENINGS), noun, rest, plural=plural, split="ood:two-nouns")
    for one, several, participle, *between in PARTICIPLES:
        for plural, noun in ((False, one), (True, several)):
            for other in between:
                add("", noun, f"{participle} the {other}", plural=plural, split="ood:participles")
    for first, second in SWAPPED:
        link = rng.choice(SWAPPED_LINKS)
        for one, several in ((first, f"{second}s"), (second, f"{first}s")):
            add("", one, f"{link} the {several}", plural=False, split="ood:swapped")
            add("", several, f"{link} the {one}", plural=True, split="ood:swapped")


def _add_unlabelled(add: Add, rng: random.Random) -> None:
    """A patching line: none, one or two nouns between the subject and its verb, each singular or plural."""

    def noun(forms: list[tuple[str, str]]) -> str:
        adjective = f"{rng.choice(words.ADJECTIVES)} " if rng.random() < 0.2 else ""
        return adjective + rng.choice(rng.choice(forms))

    def behind(forms: list[tuple[str, str]]) -> str:
        return f"{rng.choice(words.LINKS)} the {noun(forms)}"

    every = words.PEOPLE + words.THINGS
    kind = rng.random()
    if kind < 0.05:
        subject, rest = f"{rng.choice(words.ADJECTIVES)} {rng.choice(rng.choice(every))}", ""
    elif kind < 0.4:
        subject, rest = noun(every), behind(every)
    elif kind < 0.7:
        subject, rest = noun(every), f"{behind(every)} {behind(words.THINGS)}"
    elif kind < 0.8:
        subject, rest = noun(words.THINGS), f"that the {noun(words.PEOPLE)} {rng.choice(words.DONE)}"
    elif kind < 0.9:
        clause = f"that the {noun(words.PEOPLE)} {rng.choice(words.DONE)}"
        subject, rest = noun(words.THINGS), f"{clause} {behind(words.THINGS)}"
    else:
        subject, rest = noun(words.PEOPLE), f"who {rng.choice(words.MET)} the {noun(words.PEOPLE)}"
    add(rng.choice(words.OPENINGS), subject, rest, plural=None)


if __name__ == "__main__":
    OUT.write_text(write_examples(), encoding="utf-8")
