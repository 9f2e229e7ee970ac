"""Texts that stand on screens: words and names of lists, and letters and numbers at random.

Half of all names are letters at random: a model that only guesses words from their beginnings is wrong there.
"""

from collections.abc import Callable

import numpy as np

CITIES = (
    *("Hanoi", "Porto", "Lima", "Oslo", "Riga", "Cairo", "Delhi", "Tokyo", "Paris", "Milan", "Turin", "Genoa"),
    *("Bergen", "Bremen", "Lyon", "Nantes", "Quito", "Dakar", "Accra", "Lagos", "Tunis", "Athens", "Berlin", "Vienna"),
    *("Zagreb", "Sofia", "Dublin", "Leeds", "York", "Kyoto", "Osaka", "Busan", "Seoul", "Perth", "Sydney", "Havana"),
    *("Boston", "Denver", "Austin", "Dallas", "Geneva", "Basel", "Zurich", "Malmo", "Ghent", "Bruges", "Prague"),
    *("Krakow", "Gdansk", "Tallinn", "Vilnius", "Jakarta", "Nairobi", "Kampala", "Bogota", "Cusco", "Split"),
)
ITEMS = (
    *("tea", "coffee", "bread", "cheese", "apple", "salad", "soup", "rice", "pasta", "pizza", "juice", "water"),
    *("milk", "honey", "butter", "olives", "lemon", "melon", "mango", "peach", "cocoa", "toast", "bagel", "waffle"),
    *("omelet", "burger", "taco", "curry", "sushi", "noodles", "yogurt", "cake", "pie", "muffin", "cookie", "wine"),
    *("cider", "beer", "cola", "tonic", "chips", "nuts", "beans", "onion", "carrot", "garlic", "pepper", "ginger"),
)
NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Kim", "Lena", "Marc"),
    *("Nora", "Oscar", "Paula", "Quinn", "Rosa", "Sven", "Tara", "Uma", "Viktor", "Wanda", "Xavier", "Yara", "Zoe"),
    *("Amir", "Bao", "Chen", "Dara", "Elif", "Farid", "Hana", "Ines", "Jamal", "Kofi", "Linh", "Mira", "Omar"),
)
# None of them is a word of a question: an answer is spelled letter by letter.
SAID = (
    *("hello", "thanks", "sorry", "great", "maybe", "later", "soon", "ready", "coming", "home", "lunch", "dinner"),
    *("today", "tonight", "tomorrow", "monday", "friday", "call", "wait", "green", "happy", "early", "almost"),
    *("okay", "never", "always", "sure", "cannot", "funny", "quick", "rain", "snow", "sunny", "beach", "party"),
)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
UPPER, DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
AT_RANDOM = 0.5

Maker = Callable[[np.random.Generator], str]


def letters(rng: np.random.Generator, alphabet: str, count: int) -> str:
    """Return so many letters of an alphabet at random."""
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=count))


def any_word(rng: np.random.Generator, shortest: int = 3, longest: int = 8) -> str:
    """Return a word that may mean nothing: letters at random, mostly with vowels between them."""
    count = int(rng.integers(shortest, longest + 1))
    if rng.random() < 0.3:
        return letters(rng, VOWELS + CONSONANTS, count)
    start = int(rng.integers(2))
    return "".join(letters(rng, (CONSONANTS, VOWELS)[(start + place) % 2], 1) for place in range(count))


def one_of(words: tuple[str, ...], capital: bool) -> Maker:
    """Return a maker of words of a list, and as often of letters at random in their place."""

    def make(rng: np.random.Generator) -> str:
        if rng.random() < AT_RANDOM:
            word = any_word(rng)
            return word.capitalize() if capital else word
        return words[rng.integers(len(words))]

    return make


city, item, name = one_of(CITIES, True), one_of(ITEMS, False), one_of(NAMES, True)


def message(rng: np.random.Generator) -> str:
    """Return one or two words that someone says."""
    said = one_of(SAID, False)
    return " ".join(said(rng) for _ in range(rng.integers(1, 3)))


def clock(rng: np.random.Generator) -> str:
    """Return a time of day."""
    return f"{rng.integers(24):02d}:{rng.integers(60):02d}"


def price(rng: np.random.Generator) -> str:
    """Return an amount with two decimals."""
    return f"{rng.integers(1, 20 if rng.random() < 0.7 else 200)}.{rng.integers(100):02d}"


def date(rng: np.random.Generator) -> str:
    """Return a day in one of two forms."""
    day, month = rng.integers(1, 29), rng.integers(12)
    if rng.random() < 0.5:
        return f"{day} {MONTHS[month]}"
    return f"{day:02d}.{month + 1:02d}.{rng.integers(20, 40)}"


def seat(rng: np.random.Generator) -> str:
    """Return a row and a letter."""
    return f"{rng.integers(1, 100)}{letters(rng, UPPER[:8], 1)}"


def platform(rng: np.random.Generator) -> str:
    """Return a number from 1 to 24."""
    return str(rng.integers(1, 25))


def phone(rng: np.random.Generator) -> str:
    """Return digits in two groups."""
    return f"{letters(rng, DIGITS, 3)}-{letters(rng, DIGITS, 4)}"


def code(rng: np.random.Generator) -> str:
    """Return capital letters and digits at random."""
    return letters(rng, UPPER + DIGITS, int(rng.integers(4, 7)))


def amount(rng: np.random.Generator) -> str:
    """Return a whole number from 5 to 99."""
    return str(rng.integers(5, 100))


def line(rng: np.random.Generator) -> str:
    """Return a text of any kind."""
    makers = (city, item, name, message, clock, price, date, seat, phone, code, amount)
    return makers[rng.integers(len(makers))](rng)
