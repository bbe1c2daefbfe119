"""Generate the sentences of the demo: letters, digits, numbers, dates, addresses and commands, as in the AN4 corpus.

    python recipes/demo/make_sentences.py

A small grammar writes sentences.txt next to this file. All sentences are distinct, in lower case, with spelled letters
separated by spaces, and take at most 6 s to speak. The file is the same on every machine.
"""

import random
from collections.abc import Callable
from pathlib import Path


def words(text: str) -> list[str]:
    """Split a text into words."""
    return text.split()


FILE = Path(__file__).with_name("sentences.txt")

ONES = words("zero one two three four five six seven eight nine")
TEENS = words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
MONTHS = words("january february march april may june july august september october november december")
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
COMMANDS = words("go yes no help repeat stop start")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = words(
    "alice anna ben carl clara dora edgar emma fiona frank george grace hugo irene jack jane kate kevin "
    "laura leo lucy martin mary nick nina oscar otto paul peter quinn rita rosa sam sarah simon sue tom "
    "tina victor walter baker clark dixon evans fisher green hill jones keller lopez moore nolan owens "
    "parker quigley reed stone turner vance weber young zimmer"
)
PLACES = words(
    "akron austin boston butte camden dallas denver dover erie eugene fresno helena houston juneau laredo "
    "lima macon mesa miami newark omaha oxford reno salem tampa toledo tucson tulsa utica york maple elm "
    "oak cedar birch walnut main park lake river spring grove highland forbes fifth"
)
SHORT = words("cat dog box sun map key jet fox ice zip owl gum van bird lamp fish")


def below_hundred(number: int) -> str:
    """Return a number from 0 to 99 in words."""
    if number < 10:
        return ONES[number]
    if number < 20:
        return TEENS[number - 10]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")


def digits(draw: random.Random, count: int) -> str:
    """Return random digits as words. Zero is spoken as `zero` or as `oh`, with equal probability."""
    drawn = [draw.choice(ONES) for _ in range(count)]
    return " ".join(draw.choice(("zero", "oh")) if word == "zero" else word for word in drawn)


def spelled(draw: random.Random) -> str:
    """Return a name, a place or a short word, spelled letter by letter."""
    return " ".join(draw.choice((*NAMES, *PLACES, *SHORT)))


def letters(draw: random.Random, least: int, most: int) -> str:
    """Return `least` to `most` random letters."""
    return " ".join(draw.choice(LETTERS) for _ in range(draw.randint(least, most)))


def short_number(draw: random.Random) -> str:
    """Return a number as it ends a command: `nine`, `thirty nine`, `six four two`."""
    return draw.choice((digits(draw, draw.randint(1, 4)), below_hundred(draw.randrange(10, 100))))


def number(draw: random.Random) -> str:
    """Return a number up to nine thousand."""
    small = below_hundred(draw.randrange(1, 100))
    hundreds = f"{draw.choice(ONES[1:])} hundred"
    return draw.choice((small, hundreds, f"{hundreds} {small}", f"{draw.choice(ONES[1:])} thousand"))


def date(draw: random.Random) -> str:
    """Return a date such as `march third nineteen seventy`, or month, day and year as numbers."""
    day, year = draw.randint(1, 28), draw.randint(10, 99)
    ordinal = ORDINALS[day - 1] if day <= 20 else f"twenty {ORDINALS[day - 21]}"
    month = draw.randrange(12)
    return draw.choice(
        (
            f"{MONTHS[month]} {ordinal} nineteen {below_hundred(year)}",
            f"{below_hundred(month + 1)} {below_hundred(day)} {below_hundred(year)}",
        )
    )


def house_number(draw: random.Random) -> str:
    """Return a house number such as `four oh nine`, `two twelve` or `fifty six fifty six`."""
    pair = below_hundred(draw.randrange(10, 100))
    return draw.choice((digits(draw, draw.randint(3, 4)), f"{draw.choice(ONES[1:])} {pair}", f"{pair} {pair}"))


def address(draw: random.Random) -> str:
    """Return a house number and the spelled name of a street."""
    return f"{house_number(draw)} {' '.join(draw.choice([place for place in PLACES if len(place) < 6]))}"


def postcode(draw: random.Random) -> str:
    """Return five digits, such as `one five two one nine`."""
    return digits(draw, 5)


def phone(draw: random.Random) -> str:
    """Return seven digits."""
    return digits(draw, 7)


def enter(draw: random.Random) -> str:
    """Return `enter` and a number."""
    return f"enter {short_number(draw)}"


def edit(draw: random.Random) -> str:
    """Return an editing command such as `rubout g m e f three nine` or `erase c q q f seven`."""
    return f"{draw.choice(('rubout', 'erase'))} {letters(draw, 2, 4)} {short_number(draw)}"


def code(draw: random.Random) -> str:
    """Return letters and a number, as on a number plate."""
    return f"{letters(draw, 2, 4)} {short_number(draw)}"


def command(draw: random.Random) -> str:
    """Return a command of one word."""
    return draw.choice(COMMANDS)


MIX: dict[Callable[[random.Random], str], int] = {
    command: 7,
    enter: 350,
    number: 190,
    date: 240,
    house_number: 210,
    postcode: 290,
    phone: 240,
    spelled: 120,
    code: 150,
    edit: 170,
    address: 35,
}
"""Number of sentences of each kind.

All kinds of AN4 are included. There are fewer of those that the teacher often gets wrong: random letters, and whole
addresses, of which AN4 contains only the parts.
"""


def sentences() -> list[tuple[str, str]]:
    """Return distinct sentences in random order, as pairs of kind and sentence."""
    draw = random.Random(0)
    kind_by_sentence: dict[str, str] = {}
    for generate, count in MIX.items():
        target = len(kind_by_sentence) + count
        while len(kind_by_sentence) < target:
            kind_by_sentence.setdefault(generate(draw), generate.__name__)
    pairs = [(kind, sentence) for sentence, kind in kind_by_sentence.items()]
    draw.shuffle(pairs)
    return pairs


if __name__ == "__main__":
    FILE.write_text("".join(f"{sentence}\n" for _, sentence in sentences()), encoding="utf-8")
