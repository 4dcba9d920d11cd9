"""The word lists of agreement.jsonl's patching lines, written by hand. None of its unseen nouns is among them."""

from __future__ import annotations


def _list_forms(text: str) -> list[tuple[str, str]]:
    """Singular and plural of each word; regular plurals are not written out."""
    forms = []
    for word in text.split():
        one, _, several = word.partition("/")
        forms.append((one, several or _pluralise(one)))
    return forms


def _list_words(text: str) -> list[str]:
    return text.split()


def _pluralise(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


PEOPLE = _list_forms("""
actor artist athlete author aunt baby baker boss boy brother builder buyer captain carpenter child/children citizen
clerk client coach collector colleague commander cook critic customer dancer daughter designer director doctor driver
editor employee engineer expert farmer father firefighter fisherman/fishermen friend gardener girl grandmother guard
guest guide hero/heroes hunter janitor journalist judge king kid lady lawyer leader librarian maid man/men
manager mayor mechanic member minister mother musician neighbor nephew nurse officer owner painter parent partner
passenger patient photographer player plumber poet policeman/policemen politician porter president priest prince
prisoner producer programmer pupil queen reader reporter rival runner scientist secretary seller servant sheriff singer
sister soldier son speaker stranger student surgeon tailor teacher tenant thief/thieves tourist trainer traveler uncle
victim villager visitor waiter widow wife/wives winner witness/witnesses woman/women worker writer
""")
THINGS = _list_forms("""
accident account address album answer apartment apple argument article attic bag bakery balcony ball balloon bank barn
barrel basement basket beach bed bell bench bicycle bill bird boat book bottle bowl box branch bridge brush bucket
building bus button cabin cabinet cable cake calendar camera camp candle car card carpet cart cat chair chapter church
circle city class clock closet cloud club coat coin college company computer concert contract corner corridor couch
counter country court cow crime cup curtain decision desk diagram diary dish document dog door dress driveway email
engine envelope error essay event exam exhibit factory farm fee field film fire flag flat floor flower fork forest form
frame game garage garden gate gift glass glove guitar hall harbor hat hen hole horse hospital hotel house idea image
island jacket jar jewel job joke journey key kitchen knife/knives ladder lamp leaf/leaves lesson letter library light
list lock machine magazine map market mask meal medal meeting menu message mirror mistake model motor mountain movie
museum necklace needle nest newspaper note novel number office orange order oven package page paint painting paper
parcel park party path payment pen phone photo piano picture pie pig pipe plan plane plant plate play pocket poem point
pond poster pot present price prize problem product program project promise puzzle question radio railing ramp rat
report rescue restaurant reward ring road rock roof room rope rose route rug rule salad sandwich scarf/scarves scene
school screen seat secret sentence shed ship shirt shoe shop sign sink skirt sofa song speech spoon
stable staircase stamp star station steak step stone store storm story street suitcase sweater table tape task taxi team
telephone temple test theater theory ticket tie tool towel toy track trail train trap tree truck tunnel umbrella valley
van vase vehicle video village wagon wall warehouse watch wedding wheel window workshop yard
""")
ADJECTIVES = _list_words("""
ancient angry beautiful big black blue bright broken brown busy calm cheap clean clever cold curious dark dirty dusty
empty expensive famous fancy foreign former fresh friendly funny gentle golden gray great green happy heavy huge
important large little lonely long lost loud lovely lucky modern mysterious narrow new nice noisy old ordinary other
plain polite poor popular pretty quiet rare red rich round rusty sad second shiny short silent simple small square
strange strong tall tiny tired ugly unusual valuable white wide wild wise wonderful wooden wrong yellow young
""")
LINKS = [
    "to", "of", "of", "from", "about", "behind", "above", "near", "under", "on", "with", "by", "beside", "in front of",
    "next to", "for", "below", "inside", "in", "at", "around", "against", "opposite", "close to",
    "without", "over", "beyond", "across", "outside",
]  # fmt: skip
DONE = _list_words("""
admired borrowed bought broke brought built carried chose cleaned collected described designed destroyed discovered
dropped found forgot fixed hated hid ignored imagined inspected kept left liked lost loved made mentioned moved
needed noticed opened ordered owned painted picked preferred recommended remembered repaired returned saw sold stole
took touched used wanted washed watched wrote
""")
MET = _list_words("""
advised helped met saw visited thanked called followed admired ignored married hired fired taught raised saved served
remembered insulted invited interviewed knew loved hated trusted questioned watched
""")
OPENINGS = [
    "", "", "", "", "", "", "I think that", "Everybody knows that", "As you can see,", "According to the newspaper,",
    "We heard that", "In my opinion,", "At the moment,", "She said that", "My brother believes that", "Today",
    "On Monday,", "For some reason,", "Last year,", "It seems that", "They told me that", "Of course,", "Luckily,",
    "In the end,", "He wondered why", "People say that", "Without any doubt,", "I am sure that", "Right now,",
]  # fmt: skip
